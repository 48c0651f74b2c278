"""The feedback queue: joining by prefill time, demotion by time in service, promotion of the starving."""

from __future__ import annotations

import pytest

from scheduler.policies import Room
from scheduler.policies.fastserve import FastServe
from tests.scheduler.policies.making import UnitCost, make

ONE = Room(pages=100, max_jobs=1)


@pytest.mark.parametrize(("seconds", "level"), [(0.001, 0), (0.01, 0), (0.011, 1), (0.02, 1), (0.021, 2), (1.28, 7)])
def test_jobs_join_the_first_level_that_covers_their_prefill(seconds: float, level: int) -> None:
    policy = FastServe(UnitCost())
    assert policy.join_level(seconds) == level
    assert policy.quantum_seconds(level) >= seconds


def test_the_queue_goes_by_prefill_time_and_not_by_prediction() -> None:
    policy = FastServe(UnitCost())
    policy.add(make("long prompt", 1, prompt_tokens=500), 0.0)
    policy.add(make("short prompt", 900, prompt_tokens=5), 0.0)
    assert policy.head(0.0).job_id == "short prompt"  # type: ignore[union-attr]


def test_service_demotes_and_demotion_starts_a_fresh_quantum() -> None:
    policy = FastServe(UnitCost())
    old, new = make("o", generated=1), make("n", at=1.0, generated=1)
    assert policy.plan([old], ONE, 0.0).run == (old,)
    old.progress.run(0.0)
    assert policy.plan([old, new], ONE, 0.009).run == (old,)
    assert policy.plan([old, new], ONE, 0.010).run == (new,)  # 10 ms at level 0
    old.progress.wait(0.010)
    new.progress.run(0.010)
    assert policy.plan([old, new], ONE, 0.020).run == (old,)  # both at level 1 now, old came to it first
    new.progress.wait(0.020)
    old.progress.run(0.020)
    assert policy.plan([old, new], ONE, 0.039).run == (old,)
    assert policy.plan([old, new], ONE, 0.041).run == (new,)  # 20 ms at level 1


def test_the_starving_are_promoted_long_enough_to_pay_for_the_swap() -> None:
    policy = FastServe(UnitCost(), max_wait_seconds=3.0)
    starving = make("s", prompt_tokens=900, generated=1)
    policy.plan([starving], ONE, 0.0)
    fresh = make("f", at=2.9, generated=1)
    assert policy.plan([starving, fresh], ONE, 2.9).run == (fresh,)
    assert policy.plan([starving, fresh], ONE, 3.1).run == (fresh,)  # both on top, it came first
    fresh.progress.run(2.9)
    assert policy.plan([starving, fresh], ONE, 3.1).run == (starving,)
    starving.progress.run(3.1)
    newer = make("n", at=3.2, generated=1)
    assert policy.plan([starving, newer], ONE, 3.3).run == (starving,)
    assert policy.plan([starving, newer], ONE, 3.4).run == (newer,)


@pytest.mark.parametrize(("now", "first"), [(5.005, "o"), (5.02, "f")])
def test_service_before_the_first_plan_counts_and_prefill_does_not(now: float, first: str) -> None:
    """Nobody plans as long as all have room. Level 0 is for 10 ms."""
    old, fresh = make("o", runs_since=0.0), make("f", at=5.001, generated=1)
    old.progress.prefilled(5.0)
    (runs,) = FastServe(UnitCost()).plan([old, fresh], ONE, now).run
    assert runs.job_id == first


def test_one_that_starves_in_the_queue_goes_to_the_top_when_room_is_made() -> None:
    policy = FastServe(UnitCost(), max_wait_seconds=3.0)
    starving, runs = make("s", prompt_tokens=900), make("r", at=1.0, generated=1, runs_since=2.9)
    assert policy.plan([starving, runs], ONE, 2.999).run == (runs,)
    policy.forget("s")  # as if nobody had planned before
    assert policy.plan([starving, runs], ONE, 3.0).run == (starving,)
