"""What policies make of a job that was dropped: its prefill and its replay are to be done again."""

from __future__ import annotations

import pytest

from scheduler.jobs import TrackedJob
from scheduler.policies import POLICIES
from scheduler.policies.estimate import prefill_seconds, remaining_seconds, replay_seconds
from scheduler.policies.packhorse import Packhorse
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
