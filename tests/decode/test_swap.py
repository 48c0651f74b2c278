"""Swapping: a job's pages and residual leave and come back byte by byte, and no slot is lost whatever the order of events."""

from __future__ import annotations

import random

import pytest
import torch

from decode.pool import PagePool
from packhorse.errors import OverloadedError, PackhorseError
from tests.shapes import FORMAT, INFO

SLOTS, ROWS = 12, 4


def fill(pool: PagePool, job_id: str, slots: tuple[int, ...], row: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    shape = (INFO.layers, len(slots), *pool.pages.shape[2:])
    pool.pages[:, list(slots)] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    pool.residual[:, row] = torch.randn(pool.residual[:, row].shape, generator=draw)


def content(pool: PagePool, slots: tuple[int, ...], row: int) -> tuple[torch.Tensor, torch.Tensor]:
    return pool.pages[:, list(slots)].clone(), pool.residual[:, row].clone()


def test_what_comes_back_is_what_left_though_its_place_was_taken() -> None:
    pool = PagePool(INFO, FORMAT, num_slots=4, max_jobs=1)
    first = pool.reserve("a", 4)
    fill(pool, "a", first.slots, first.row, 1)
    pages, residual = content(pool, first.slots, first.row)
    pool.swap_out("a", closed_pages=3)
    assert (pool.used_slots, pool.used_rows, pool.host_pages_used) == (0, 0, 4)
    other = pool.reserve("b", 2)
    fill(pool, "b", other.slots, other.row, 2)
    with pytest.raises(OverloadedError, match="job a needs 4 pages"):
        pool.swap_in("a")
    with pytest.raises(PackhorseError, match="holds a reservation already"):
        pool.reserve("a", 1)
    assert pool.host_pages_used == 4
    pool.free("b")
    again = pool.swap_in("a")
    back, residual_back = content(pool, again.slots, again.row)
    assert torch.equal(back[:, :3], pages[:, :3])
    assert torch.equal(residual_back, residual)
    assert (pool.used_slots, pool.used_rows, pool.host_pages_used) == (4, 1, 0)


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_arrive_preempt_resume_and_end(seed: int) -> None:
    draw, pool = random.Random(seed), PagePool(INFO, FORMAT, SLOTS, ROWS)
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
            fill(pool, f"j{i}", held.slots, held.row, i)
            there[f"j{i}"], expected[f"j{i}"] = (held.slots, held.row), content(pool, held.slots, held.row)
        elif event == "preempt" and there:
            job_id = draw.choice(sorted(there))
            slots, _ = there.pop(job_id)
            pool.swap_out(job_id, len(slots))
            out[job_id] = len(slots)
        elif event == "resume" and out:
            job_id = draw.choice(sorted(out))
            try:
                held = pool.swap_in(job_id)
            except OverloadedError:
                continue
            del out[job_id]
            there[job_id] = (held.slots, held.row)
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
    assert (pool.used_slots, pool.used_rows, pool.host_pages_used) == (0, 0, 0)
