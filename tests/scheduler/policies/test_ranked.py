"""ssjf, srpt-oracle, alise, trail and ltr: the order that each is known by, and its rule against starvation."""

from __future__ import annotations

import pytest

from scheduler.policies import POLICIES, Policy, Room
from scheduler.policies.alise import Alise
from scheduler.policies.ltr import Ltr
from scheduler.policies.trail import Trail
from tests.scheduler.policies.making import UnitCost, ids, make

ONE = Room(pages=100, max_jobs=1)


@pytest.mark.parametrize("name", ["ssjf", "alise", "trail", "ltr", "lamps", "srpt-oracle", "packhorse"])
def test_shorter_jobs_are_placed_first(name: str) -> None:
    policy = POLICIES[name](UnitCost())
    for job_id, tokens in (("a", 300), ("b", 20), ("c", 100)):
        policy.add(make(job_id, tokens), 0.0)
    assert ids(drain(policy)) == "bca"


def drain(policy: Policy) -> tuple:  # type: ignore[type-arg]
    jobs = []
    while (head := policy.head(0.0)) is not None:
        jobs.append(head)
        policy.remove(head.job_id)
    return tuple(jobs)


@pytest.mark.parametrize("name", ["alise", "trail", "ltr", "srpt-oracle", "packhorse"])
def test_a_much_shorter_job_stops_a_running_one(name: str) -> None:
    long, short = make("l", 500, generated=1, runs_since=0), make("s", 5, generated=1)
    assert POLICIES[name](UnitCost()).plan([long, short], ONE, 1.0).run == (short,)


@pytest.mark.parametrize("name", ["alise", "trail", "srpt-oracle", "packhorse"])
def test_what_is_left_counts_and_not_the_whole(name: str) -> None:
    nearly, short = make("n", 500, generated=499, runs_since=0), make("s", 50, generated=1)
    assert POLICIES[name](UnitCost()).plan([nearly, short], ONE, 1.0).run == (nearly,)


def test_waiting_ssjf_jobs_come_first_after_100_seconds() -> None:
    policy = POLICIES["ssjf"](UnitCost())
    policy.add(make("l", 500), 0.0)
    policy.add(make("s", 5, at=50), 50.0)
    assert [policy.head(now).job_id for now in (99.0, 100.0)] == ["s", "l"]  # type: ignore[union-attr]


def test_alise_ages_by_waiting() -> None:
    policy = Alise(UnitCost(), ageing=0.5)
    old, young = make("o", 50), make("y", 40, at=9.0)  # one second of work apart, two of ageing are worth one
    policy.add(old, 0.0)
    policy.add(young, 9.0)
    assert policy.head(9.0) is old
    waits, runs = make("w", 31, generated=1), make("r", 21, generated=1, runs_since=0)
    assert policy.plan([waits, runs], ONE, 1.9).run == (runs,)
    assert policy.plan([waits, runs], ONE, 2.1).run == (waits,)


def test_alise_estimates_waiting_times() -> None:
    policy = Alise(UnitCost(), ageing=0.5)
    jobs = [make("a", 11, generated=1), make("b", 21, generated=1), make("c", 41, generated=1)]
    plan = policy.plan(jobs, ONE, 0.0)
    assert (ids(plan.run), ids(plan.wait)) == ("a", "bc")
    waits = policy.waiting_seconds(plan, 0.0)
    assert waits["b"] == pytest.approx(1.0)  # a's second of work; ageing would take two
    assert waits["c"] == pytest.approx(3.0)


def test_trail_stops_nobody_past_the_cutoff() -> None:
    policy = Trail(UnitCost(), cutoff=0.5)
    half, short = make("h", 100, generated=49, runs_since=0), make("s", 5, generated=1)
    assert policy.plan([half, short], ONE, 1.0).run == (short,)
    half.progress.generated = 50
    assert policy.plan([half, short], ONE, 1.0).run == (half,)


def test_trail_brings_a_job_back_that_waits_past_the_cutoff() -> None:
    policy = Trail(UnitCost(), cutoff=0.5)
    evicted, short = make("e", 100, generated=60), make("s", 5, generated=1, runs_since=0)
    assert policy.plan([evicted, short], ONE, 1.0).run == (evicted,)
    other = make("o", 100, generated=60, runs_since=0)
    assert policy.plan([evicted, other], ONE, 1.0).run == (other,)


def test_trails_cutoff_keeps_the_first_prediction() -> None:
    policy = Trail(UnitCost(), cutoff=0.5)
    job, short = make("j", 100, generated=60, runs_since=0), make("s", 5, generated=1)
    policy.plan([job], ONE, 0.0)
    job.forecast = make("refined", 900).forecast
    assert policy.plan([job, short], ONE, 1.0).run == (job,)
    policy.forget("j")
    assert policy.plan([job, short], ONE, 1.0).run == (short,)


def test_ltr_goes_by_score_alone() -> None:
    policy = Ltr(UnitCost())
    one, two = make("1", 10), make("2", 500)
    one.forecast, two.forecast = (
        type(one.forecast)(job.forecast.tokens, 1000, score) for job, score in ((one, -1), (two, 1))
    )
    policy.add(one, 0.0)
    policy.add(two, 0.0)
    assert policy.head(0.0) is two


def test_ltr_promotes_after_200_steps_for_10() -> None:
    policy = Ltr(UnitCost())  # 20 s and 1 s
    idle, runs = make("i", 500, generated=1), make("r", 5, generated=1, runs_since=0)
    assert policy.plan([idle, runs], ONE, 19.9).run == (runs,)
    assert policy.plan([idle, runs], ONE, 20.0).run == (idle,)
    idle.progress.run(20.0)
    runs.progress.wait(20.0)
    assert policy.plan([idle, runs], ONE, 20.9).run == (idle,)
    assert policy.plan([idle, runs], ONE, 21.0).run == (runs,)
