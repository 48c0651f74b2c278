"""What policies make of a job that was dropped: its prefill and its replay are to be done again."""

from __future__ import annotations

import pytest

from scheduler.jobs import TrackedJob
from scheduler.policies import POLICIES, Room
from scheduler.policies.estimate import prefill_seconds, remaining_seconds, replay_seconds
from scheduler.policies.fastserve import FastServe
from scheduler.policies.packhorse import Packhorse
from scheduler.policies.trail import Trail
from tests.scheduler.policies.making import UnitCost, make, placed_next

COST = UnitCost()  # 1 ms per token of a prompt, 0.1 s per step


def dropped(job_id: str, tokens: float, generated: int, prompt_tokens: int = 10) -> TrackedJob:
    job = make(job_id, tokens, prompt_tokens=prompt_tokens)
    job.progress.drop(generated)
    return job


def test_the_remaining_time_shrinks_as_the_replay_goes_on() -> None:
    job = dropped("d", 100, generated=60, prompt_tokens=500)
    assert remaining_seconds(job, COST) == pytest.approx(0.5 + 6.0 + 4.0)
    job.progress.report(1)
    assert (prefill_seconds(job, COST), replay_seconds(job, COST)) == (0.0, pytest.approx(5.9))
    job.progress.report(31)
    assert remaining_seconds(job, COST) == pytest.approx(2.9 + 4.0)
    job.progress.report(61)
    assert remaining_seconds(job, COST) == pytest.approx(3.9)


def test_the_steps_of_a_replay_cost_what_their_own_context_costs() -> None:
    class ByContext(UnitCost):
        def step_seconds(self, context_tokens: int, batch: int) -> float:
            return 1e-6 * context_tokens

    job = dropped("d", 200, generated=100, prompt_tokens=1000)
    assert replay_seconds(job, ByContext()) == pytest.approx(100 * 1e-6 * 1050)
    job.progress.report(40)
    assert replay_seconds(job, ByContext()) == pytest.approx(60 * 1e-6 * 1070)


@pytest.mark.parametrize("name", ["packhorse", "alise", "srpt-oracle"])
def test_a_dropped_job_goes_behind_one_that_is_sooner_done(name: str) -> None:
    """Of 100 tokens 60 are to be computed again: it is as long as it ever was, however few are still to come."""
    policy = POLICIES[name](COST)
    for job in (dropped("d", 100, generated=60), make("between", 70), make("longer", 110)):
        policy.add(job, 0.0)
    assert placed_next(policy, 0.0) == ["between", "d", "longer"]


def test_a_plan_sees_how_far_a_replay_is() -> None:
    """Else a use that was computed once would stand although its job's tokens do not change during the replay."""
    policy = Packhorse(COST)
    job = dropped("d", 100, generated=60)
    before = policy.run_rank(job, 0.0)
    job.progress.report(50)
    assert policy.run_rank(job, 0.0) < before


@pytest.mark.parametrize("name", ["ltr", "fastserve", "packhorse"])
def test_a_dropped_job_has_waited_since_it_was_stopped_and_not_since_it_came(name: str) -> None:
    policy = POLICIES[name](COST)
    job = make("d", 900, prompt_tokens=500)
    job.progress.run(0.0)
    job.progress.wait(1000.0)
    job.progress.drop(60)
    policy.add(job, 1000.0)
    policy.add(make("short", 5, at=1000.5), 1000.5)
    assert job not in policy.ahead(make("even shorter", 4), 1001.0)
    assert [job.job_id for job in policy.upcoming(1001.0)] == ["short", "d"]
    assert placed_next(policy, 1001.0) == ["short", "d"]


def test_alise_ages_a_dropped_job_from_when_it_was_stopped() -> None:
    policy = POLICIES["alise"](COST)
    job = make("d", 100)
    job.progress.run(0.0)
    job.progress.wait(1000.0)
    policy.add(job, 1000.0)
    policy.add(make("shorter", 99, at=1000.5), 1000.5)
    assert placed_next(policy, 1000.5) == ["shorter", "d"]


def test_fastserve_keeps_the_level_of_a_dropped_job() -> None:
    policy = FastServe(COST)
    job = make("d", generated=1, runs_since=0.0)
    policy.plan([job], Room(pages=10, max_jobs=1), 1.0)
    job.progress.wait(1.0)
    job.progress.drop(9)
    policy.add(job, 1.0)
    policy.add(make("fresh", at=1.1), 1.1)
    assert placed_next(policy, 1.2) == ["fresh", "d"]


def test_trail_puts_a_dropped_job_past_the_cutoff_first() -> None:
    policy = Trail(COST, cutoff=0.5)
    for job in (make("short", 5), dropped("before", 100, generated=49), dropped("past", 100, generated=50)):
        policy.add(job, 0.0)
    assert placed_next(policy, 0.0) == ["past", "short", "before"]
