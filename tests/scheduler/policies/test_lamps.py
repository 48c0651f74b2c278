"""What becomes of memory during a tool pause, and the rank by memory x time."""

from __future__ import annotations

import pytest

from scheduler.jobs import ToolPause
from scheduler.policies.lamps import Lamps
from tests.scheduler.policies.making import UnitCost, make


@pytest.mark.parametrize(
    ("seconds", "others_tokens", "action"),
    [(0.001, 0, "preserve"), (60.0, 0, "swap"), (60.0, 10**6, "swap"), (0.001, 10**6, "preserve")],
)
def test_the_least_waste_is_chosen(seconds: float, others_tokens: int, action: str) -> None:
    job = make("a", 200, prompt_tokens=500)
    job.pause = ToolPause(after_tokens=100, seconds=seconds)
    assert Lamps(UnitCost()).pause_action(job, others_tokens) == action


def test_what_is_recomputed_faster_than_it_is_moved_is_discarded() -> None:
    job = make("a", 200, prompt_tokens=500)
    job.pause = ToolPause(after_tokens=100, seconds=60.0)
    assert Lamps(UnitCost(), swap_tokens_per_second=100.0).pause_action(job, 1000) == "discard"
    job.pause = None
    assert Lamps(UnitCost()).pause_action(job, 1000) == "preserve"


def test_the_rank_counts_memory_and_not_time_alone() -> None:
    policy = Lamps(UnitCost())
    policy.add(make("long prompt", 20, prompt_tokens=900), 0.0)
    policy.add(make("more tokens", 40, prompt_tokens=5), 0.0)
    assert policy.head(0.0).job_id == "more tokens"  # type: ignore[union-attr]


def test_a_pause_that_is_preserved_costs_its_memory_and_the_answer_counts() -> None:
    policy, plain, paused, answered = Lamps(UnitCost()), make("p"), make("q"), make("r")
    paused.pause = ToolPause(after_tokens=50, seconds=0.0001)
    assert policy.memory_seconds(paused) == pytest.approx(policy.memory_seconds(plain), rel=0.01)
    paused.pause = ToolPause(after_tokens=50, seconds=0.0005)
    answered.pause = ToolPause(after_tokens=50, seconds=0.0005, returned_tokens=300)
    assert policy.memory_seconds(plain) < policy.memory_seconds(paused) < policy.memory_seconds(answered)
