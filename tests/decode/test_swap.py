"""Swapping: a job's pages and residual leave and come back byte by byte, and no slot is lost whatever the order of events."""

from __future__ import annotations

import random

import pytest
import torch

from decode.copier import PAGES_AT_ONCE
from decode.pool import PagePool
from packhorse.errors import OverloadedError, PackhorseError
from tests.decode.fakes import Memory
from tests.shapes import FORMAT, INFO

SLOTS, ROWS = 12, 4


@pytest.fixture
def memory() -> Memory:
    return Memory(PagePool(INFO, FORMAT, SLOTS, ROWS))


def fill(pool: PagePool, slots: tuple[int, ...], row: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    shape = (INFO.layers, len(slots), *pool.pages.shape[2:])
    pool.pages[:, list(slots)] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    pool.residual[:, row] = torch.randn(pool.residual[:, row].shape, generator=draw)


def content(pool: PagePool, slots: tuple[int, ...], row: int) -> tuple[torch.Tensor, torch.Tensor]:
    return pool.pages[:, list(slots)].clone(), pool.residual[:, row].clone()


@pytest.mark.parametrize("num_pages", [4, 2 * PAGES_AT_ONCE + 3])
def test_what_comes_back_is_what_left_though_its_place_was_taken(num_pages: int) -> None:
    memory = Memory(PagePool(INFO, FORMAT, num_pages, 1))
    pool = memory.pool
    first = pool.reserve("a", num_pages)
    fill(pool, first.slots, first.row, 1)
    pages, residual = content(pool, first.slots, first.row)
    memory.swap_out("a", closed_pages=num_pages - 1)
    assert memory.used == (0, 0, num_pages)
    slot_bytes = PagePool.slot_bytes(INFO, FORMAT)
    assert memory.copies["a"].num_bytes == (num_pages - 1) * slot_bytes + pool.residual[:, 0].numel() * 4
    other = pool.reserve("b", 2)
    fill(pool, other.slots, other.row, 2)
    with pytest.raises(OverloadedError, match=f"job a needs {num_pages} pages"):
        pool.come_back("a")
    with pytest.raises(PackhorseError, match="holds a reservation already"):
        pool.reserve("a", 1)
    assert pool.host_pages_used == num_pages
    pool.free("b")
    held = memory.swap_in("a")
    back, residual_back = content(pool, held.slots, held.row)
    assert torch.equal(back[:, :-1], pages[:, :-1])
    assert torch.equal(residual_back, residual)
    assert memory.used == (num_pages, 1, 0)


def test_a_job_on_its_way_holds_memory_on_both_sides_and_may_end_there(memory: Memory) -> None:
    memory.pool.reserve("a", 5)
    memory.pool.leave("a")
    assert memory.used == (5, 1, 5)
    memory.pool.free("a")
    assert memory.used == (0, 0, 0)
    memory.pool.reserve("b", 5)
    memory.swap_out("b", 2)
    memory.pool.come_back("b")
    assert memory.used == (5, 1, 5)
    memory.pool.free("b")
    assert memory.used == (0, 0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_arrive_preempt_resume_and_end(seed: int, memory: Memory) -> None:
    draw, pool = random.Random(seed), memory.pool
    there: dict[str, tuple[tuple[int, ...], int]] = {}  # slots and row
    expected: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    out: dict[str, int] = {}
    for i in range(400):
        event = draw.choice(["arrive", "preempt", "resume", "end"])
        if event == "arrive":
            try:
                held = pool.reserve(f"j{i}", draw.randint(0, 6))
            except OverloadedError:
                continue
            fill(pool, held.slots, held.row, i)
            there[f"j{i}"], expected[f"j{i}"] = (held.slots, held.row), content(pool, held.slots, held.row)
        elif event == "preempt" and there:
            job_id = draw.choice(sorted(there))
            slots, _ = there.pop(job_id)
            memory.swap_out(job_id, len(slots))
            out[job_id] = len(slots)
        elif event == "resume" and out:
            job_id = draw.choice(sorted(out))
            try:
                held = memory.swap_in(job_id)
            except OverloadedError:
                continue
            there[job_id] = (held.slots, held.row)
            del out[job_id]
        elif event == "end" and (there or out):
            job_id = draw.choice(sorted({**there, **out}))
            pool.free(job_id)
            there.pop(job_id, None)
            out.pop(job_id, None)
        taken = [slot for slots, _ in there.values() for slot in slots]
        assert len(set(taken)) == len(taken) == pool.used_slots
        assert pool.used_rows == len({row for _, row in there.values()}) == len(there)
        assert pool.host_pages_used == sum(out.values())
        for job_id, (slots, row) in there.items():
            pages, residual = content(pool, slots, row)
            assert torch.equal(pages, expected[job_id][0])
            assert torch.equal(residual, expected[job_id][1])
    for job_id in [*there, *out]:
        pool.free(job_id)
    assert memory.used == (0, 0, 0)
