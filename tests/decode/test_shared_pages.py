"""Reservations that share prompt pages: held pages take no slot, nothing is written or given up under a job, capacity stays whole."""

from __future__ import annotations

import random

import pytest
import torch

from decode.pool import PagePool, Reservation
from packhorse.errors import OverloadedError
from tests.decode.fakes import Memory
from tests.shapes import FORMAT, INFO

SLOTS, ROWS = 12, 4


def digests(path: str) -> tuple[bytes, ...]:
    return tuple(path[: i + 1].encode() for i in range(len(path)))


@pytest.fixture
def pool() -> PagePool:
    return PagePool(INFO, FORMAT, num_slots=6, max_jobs=3)


def run(pool: PagePool, job_id: str, num_pages: int, path: str) -> Reservation:
    """A job whose prompt's pages are complete."""
    pool.reserve(job_id, num_pages, digests(path))
    return pool.share(job_id)


def test_the_pages_of_an_ended_job_serve_the_next(pool: PagePool) -> None:
    first = run(pool, "a", 4, "xyz")
    assert (pool.used_slots, pool.cached_slots) == (4, 0)
    pool.free("a")
    assert (pool.used_slots, pool.cached_slots) == (0, 3)
    second = pool.reserve("b", 5, digests("xyw"))
    assert second.shared_pages == 2
    assert second.slots[:2] == first.slots[:2]
    assert (pool.used_slots, pool.cached_slots) == (5, 1)


def test_pages_of_a_stream_that_never_ended_serve_nobody(pool: PagePool) -> None:
    pool.reserve("a", 4, digests("xyz"))
    pool.free("a")
    assert (pool.used_slots, pool.cached_slots) == (0, 0)
    assert pool.reserve("b", 4, digests("xyz")).shared_pages == 0


def test_two_jobs_at_once_end_up_with_one_copy(pool: PagePool) -> None:
    pool.reserve("a", 3, digests("xy"))
    own = pool.reserve("b", 3, digests("xy"))
    assert own.shared_pages == 0
    one, two = pool.share("a"), pool.share("b")
    assert two.slots[:2] == one.slots[:2]
    assert two.slots[2] == own.slots[2] != one.slots[2]
    assert pool.used_slots == 4
    pool.free("a")
    assert (pool.used_slots, pool.cached_slots) == (3, 0)
    pool.free("b")
    assert (pool.used_slots, pool.cached_slots) == (0, 2)


def test_cached_pages_make_way_and_capacity_is_what_it_was(pool: PagePool) -> None:
    run(pool, "a", 3, "xyz")
    pool.free("a")
    assert len(set(pool.reserve("b", 6).slots)) == 6
    assert (pool.used_slots, pool.cached_slots, len(pool.prefixes)) == (6, 0, 0)


def test_a_reservation_that_does_not_fit_leaves_the_pages_that_it_would_have_shared(pool: PagePool) -> None:
    run(pool, "a", 3, "xyz")
    pool.free("a")
    pool.reserve("b", 2)
    with pytest.raises(OverloadedError, match="needs 5 pages and a residual row; free: 4 pages"):
        pool.reserve("c", 5, digests("xyzv"))
    assert (pool.used_slots, pool.cached_slots) == (2, 3)
    assert pool.reserve("c", 4, digests("xyzv")).shared_pages == 3


def test_a_job_that_is_swapped_out_lets_go_of_shared_pages_and_comes_back_to_its_own(pool: PagePool) -> None:
    first = run(pool, "a", 3, "xy")
    pool.pages[:, list(first.slots)] = 7
    second = run(pool, "b", 3, "xy")
    pool.pages[:, second.slots[2]] = 9
    memory = Memory(pool)
    memory.swap_out("b", closed_pages=3)
    assert (pool.used_slots, pool.host_pages_used) == (3, 3)
    pool.free("a")
    assert pool.cached_slots == 2
    back = memory.swap_in("b")
    assert back.shared_pages == 0
    assert not set(back.slots) & set(first.slots[:2])
    assert (pool.pages[:, list(back.slots)].amax((0, 2, 3))).tolist() == [7, 7, 9]
    pool.free("b")
    assert (pool.used_slots, pool.host_pages_used) == (0, 0)


@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_events_loses_no_page_and_changes_none_under_a_job(seed: int) -> None:
    """Every page's bytes are drawn when its stream brings it, and looked at after every event, by every job that has it."""
    draw, pool = random.Random(seed), PagePool(INFO, FORMAT, SLOTS, ROWS)
    memory = Memory(pool)
    there: dict[str, Reservation] = {}
    pages: dict[str, list[int]] = {}  # what the job attends to, page by page, as far as it has come
    streaming: set[str] = set()
    out: dict[str, int] = {}
    for i in range(500):
        event = draw.choice(["arrive", "arrive", "complete", "generate", "preempt", "resume", "end"])
        if event == "arrive":
            path, job_id = "".join(draw.choice("ab") for _ in range(draw.randint(0, 4))), f"j{i}"
            num_pages = len(path) + draw.randint(0, 3)
            promised = sum(len(held.slots) for held in there.values())
            fits = promised + num_pages <= SLOTS and len(there) < ROWS
            try:
                held = pool.reserve(job_id, num_pages, digests(path))
            except OverloadedError:
                assert not fits  # what the scheduler counts as free, is
                continue
            there[job_id], pages[job_id] = held, [_marks(pool, held.slots[p]) for p in range(held.shared_pages)]
            streaming.add(job_id)
        elif event == "complete" and streaming:
            job_id = draw.choice(sorted(streaming))
            streaming.discard(job_id)
            held = there[job_id]
            for slot in held.slots[held.shared_pages : len(held.digests)]:
                _mark(pool, slot, draw.randint(1, 255))
            held = there[job_id] = pool.share(job_id)
            pages[job_id] = [_marks(pool, slot) for slot in held.slots[: len(held.digests)]]
        elif event == "generate" and (running := sorted(there.keys() - streaming)):
            job_id = draw.choice(running)
            held, closed = there[job_id], len(pages[job_id])
            if closed < len(held.slots):
                pages[job_id].append(draw.randint(1, 255))
                _mark(pool, held.slots[closed], pages[job_id][-1])
        elif event == "preempt" and (running := sorted(there.keys() - streaming)):
            job_id = draw.choice(running)
            memory.swap_out(job_id, len(pages[job_id]))
            out[job_id] = len(there.pop(job_id).slots)
        elif event == "resume" and out:
            job_id = draw.choice(sorted(out))
            try:
                there[job_id] = memory.swap_in(job_id)
            except OverloadedError:
                continue
            del out[job_id]
        elif event == "end" and (there or out):
            job_id = draw.choice(sorted({**there, **out}))
            pool.free(job_id)
            there.pop(job_id, None)
            out.pop(job_id, None)
            streaming.discard(job_id)
        _check(pool, there, pages)
        assert pool.host_pages_used == sum(out.values())
    for job_id in [*there, *out]:
        pool.free(job_id)
    assert (pool.used_slots, pool.used_rows, pool.host_pages_used) == (0, 0, 0)
    assert len(set(pool.reserve("all", SLOTS).slots)) == SLOTS


def _check(pool: PagePool, there: dict[str, Reservation], pages: dict[str, list[int]]) -> None:
    owned = [slot for held in there.values() for slot in held.slots[held.shared_pages :]]
    shared = {slot for held in there.values() for slot in held.slots[: held.shared_pages]}
    assert len(set(owned)) == len(owned)
    assert not shared & set(owned)
    assert pool.used_slots == len(owned) + len(shared)
    assert pool.cached_slots <= SLOTS - pool.used_slots
    for job_id, held in there.items():
        assert [_marks(pool, slot) for slot, _ in zip(held.slots, pages[job_id], strict=False)] == pages[job_id]


def _mark(pool: PagePool, slot: int, value: int) -> None:
    pool.pages[:, slot] = value


def _marks(pool: PagePool, slot: int) -> int:
    values = torch.unique(pool.pages[:, slot])
    assert len(values) == 1
    return int(values[0])
