"""What holds for every policy: random queues and plans, whatever was predicted."""

from __future__ import annotations

import math
import random

import pytest

from scheduler.forecast import LEVELS, Forecast
from scheduler.policies import POLICIES, Room
from tests.scheduler.policies.making import UnitCost, make, placed_next

NAMES = sorted(POLICIES)


def test_names_are_the_registrys() -> None:
    assert {name: policy.name for name, policy in POLICIES.items()} == {name: name for name in POLICIES}
    assert {"fcfs", "ssjf", "alise", "fastserve", "trail", "ltr", "lamps", "srpt-oracle", "packhorse"} <= set(POLICIES)


@pytest.mark.parametrize("name", NAMES)
def test_the_queue_loses_nothing_and_invents_nothing(name: str) -> None:
    draw, policy, queued = random.Random(1), POLICIES[name](UnitCost()), {}
    for i in range(600):
        now = i * 0.5
        if draw.random() < 0.55:
            job = make(f"j{i}", [draw.choice([1.0, 50.0, math.nan, -5.0, 1e9])] * len(LEVELS), at=now)
            policy.add(job, now)
            queued[job.job_id] = job
        elif (head := policy.head(now)) is not None:
            assert policy.head(now) is head
            gone = head.job_id if draw.random() < 0.7 else draw.choice(list(queued))
            policy.remove(gone)
            policy.forget(gone)
            del queued[gone]
        policy.remove("never")
        assert len(policy) == len(queued)
        head = policy.head(now)
        assert (head is None) == (not queued)
        assert head is None or queued[head.job_id] is head


@pytest.mark.parametrize("name", NAMES)
def test_plans_hold_every_job_once_and_fit(name: str) -> None:
    draw, policy = random.Random(2), POLICIES[name](UnitCost())
    jobs = {f"j{i}": make(f"j{i}", draw.randint(1, 900), pages=draw.randint(0, 9), generated=1) for i in range(12)}
    for i in range(300):
        now, room = i * 0.4, Room(pages=draw.randint(9, 30), max_jobs=draw.randint(1, 6))
        plan = policy.plan(list(jobs.values()), room, now)
        assert sorted(job.job_id for job in (*plan.run, *plan.wait)) == sorted(jobs)
        assert plan.run
        assert len(plan.run) <= room.max_jobs
        assert sum(job.run_pages for job in plan.run) <= room.pages
        for job in plan.run:
            job.progress.run(now)
            job.progress.generated += 1
        for job in plan.wait:
            job.progress.wait(now)
        if draw.random() < 0.1:
            ended = jobs.pop(draw.choice(list(jobs)))
            policy.observe(ended, ended.progress.generated, now)
            policy.forget(ended.job_id)
            fresh = make(f"n{i}", draw.randint(1, 900), at=now, pages=draw.randint(0, 9), generated=1)
            jobs[fresh.job_id] = fresh


@pytest.mark.parametrize("name", [name for name in NAMES if not POLICIES[name].preempts])
def test_a_policy_that_does_not_preempt_keeps_what_runs(name: str) -> None:
    policy = POLICIES[name](UnitCost())
    runs, waits = make("r", 900, generated=1, runs_since=0), make("w", 2, generated=1)
    plan = policy.plan([waits, runs], Room(pages=10, max_jobs=1), 1.0)
    assert plan.run == (runs,)


@pytest.mark.parametrize("name", NAMES)
def test_without_predictions_of_equal_jobs_arrival_decides(name: str) -> None:
    policy = POLICIES[name](UnitCost())
    for at in range(5):
        job = make(str(at), at=at)
        job.forecast = Forecast.unknown(1000)
        policy.add(job, at)
    order = ""
    while (head := policy.head(5.0)) is not None:
        order += head.job_id
        policy.remove(head.job_id)
    assert order == "01234"


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"trail", "srpt-oracle", "alise"}))
def test_a_long_job_is_served_while_short_ones_keep_coming(name: str) -> None:
    """One job is placed each second, one short one comes each second: the long one waits no longer than the policy's bound."""
    policy = POLICIES[name](UnitCost())
    policy.add(make("long", 900, prompt_tokens=900), 0.0)
    for now in range(1, 200):
        policy.add(make(f"s{now}", 5, at=now), now)
        head = policy.head(now)
        assert head is not None
        policy.remove(head.job_id)
        if head.job_id == "long":
            assert now <= getattr(policy, "max_wait_seconds", 0.0) + 1
            return
    pytest.fail("the long job starved")


@pytest.mark.parametrize("name", NAMES)
def test_the_upcoming_are_those_that_are_placed_next(name: str) -> None:
    draw = random.Random(7)
    for wait in (1.0, 1e6):  # after which nobody or everybody is overdue, where the policy knows of that
        policy = POLICIES[name](UnitCost())
        for i in range(40):
            policy.add(make(f"j{i}", draw.randint(1, 500), at=i / 100, prompt_tokens=draw.randint(1, 900)), i / 100)
        for i in range(0, 40, 3):
            policy.remove(f"j{i}")
        told = [job.job_id for job in policy.upcoming(wait)]
        assert sorted(told) == sorted(job.job_id for job in policy.queued())
        if name != "packhorse" or wait == 1.0:  # whose overdue take turns, by what was placed before
            assert told == placed_next(policy, wait)
            assert list(policy.upcoming(wait)) == []
