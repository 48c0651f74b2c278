"""Reservations: whole or not at all, and everything comes back."""

from __future__ import annotations

import pytest

from decode.pool import PagePool
from packhorse.errors import OverloadedError, PackhorseError
from tests.shapes import FORMAT, INFO


@pytest.fixture
def pool() -> PagePool:
    return PagePool(INFO, FORMAT, num_slots=6, max_jobs=2)


def test_slots_are_disjoint_and_return(pool: PagePool) -> None:
    a, b = pool.reserve("a", 2), pool.reserve("b", 4)
    assert set(a.slots) | set(b.slots) == set(range(6))
    assert a.row != b.row
    assert (pool.used_slots, pool.used_rows) == (6, 2)
    pool.free("a")
    pool.free("b")
    assert (pool.used_slots, pool.used_rows) == (0, 0)


def test_a_reservation_that_does_not_fit_takes_nothing(pool: PagePool) -> None:
    pool.reserve("a", 4)
    with pytest.raises(OverloadedError, match="needs 3 pages"):
        pool.reserve("b", 3)
    assert (pool.used_slots, pool.used_rows) == (4, 1)


def test_rows_run_out_too(pool: PagePool) -> None:
    pool.reserve("a", 0)
    pool.reserve("b", 0)
    with pytest.raises(OverloadedError, match="0 rows"):
        pool.reserve("c", 0)


def test_a_job_reserves_once(pool: PagePool) -> None:
    pool.reserve("a", 1)
    with pytest.raises(PackhorseError, match="already"):
        pool.reserve("a", 1)


def test_slot_bytes_counts_all_layers_and_heads(pool: PagePool) -> None:
    assert PagePool.slot_bytes(INFO, FORMAT) * 6 == pool.pages.numel()
