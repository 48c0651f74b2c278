"""The default candidate: uncertainty, memory, classes, the margin, the bound, and a predictor that is not worth following."""

from __future__ import annotations

import random

import pytest

from scheduler.policies import Room
from scheduler.policies.packhorse import Packhorse
from scheduler.policies.trust import LEAST_JOBS, WINDOW, Trust
from scheduler.recent import REFRESH_EVERY, RecentLengths
from tests.scheduler.policies.making import UnitCost, make

ONE = Room(pages=100, max_jobs=1)


def first(policy: Packhorse, *jobs: object) -> str:
    for job in jobs:
        policy.add(job, 0.0)  # type: ignore[arg-type]
    head = policy.head(0.0)
    assert head is not None
    return head.job_id


def test_of_equal_medians_the_one_that_may_end_soon_goes_first() -> None:
    surely, maybe = make("surely", [95, 98, 100, 102, 105]), make("maybe", [2, 5, 100, 102, 105])
    assert first(Packhorse(UnitCost()), surely, maybe) == "maybe"
    assert (
        first(Packhorse(UnitCost(), level=0.9), make("s", [95, 98, 100, 102, 105]), make("m", [2, 5, 99, 300, 500]))
        == "s"
    )


def test_pages_count_beyond_the_share_of_the_batch() -> None:
    light, heavy = make("light", 110, pages=1), make("heavy", 100, pages=50)
    assert first(Packhorse(UnitCost()), light, heavy) == "heavy"  # no worker known: time alone
    policy = Packhorse(UnitCost())
    policy.room = Room(pages=100, max_jobs=10)
    assert first(policy, light, heavy) == "light"


def test_a_prefill_takes_a_whole_worker_and_a_token_its_place() -> None:
    policy = Packhorse(UnitCost())  # 0.1 s a step, 1 ms per token of prompt
    policy.room = Room(pages=1000, max_jobs=10)
    long_prompt, more_tokens = make("prompt", 100, prompt_tokens=500), make("tokens", 130, prompt_tokens=10)
    assert first(policy, long_prompt, more_tokens) == "tokens"  # 0.5 + 1.0 s against 0.01 + 1.3 s


def test_prompts_are_known_even_where_outputs_are_not() -> None:
    assert first(Packhorse(UnitCost()), make("long", 900, prompt_tokens=800), make("short", 900)) == "short"


def test_classes_come_before_lengths() -> None:
    assert first(Packhorse(UnitCost()), make("low", 5), make("high", 500, priority=1)) == "high"


def test_near_ties_do_not_preempt() -> None:
    runs, near, far = make("r", 101, generated=1, runs_since=0), make("n", 41, generated=1), make("f", 21, generated=1)
    assert Packhorse(UnitCost()).plan([runs, near], ONE, 1.0).run == (runs,)
    assert Packhorse(UnitCost()).plan([runs, far], ONE, 1.0).run == (far,)


def test_nobody_waits_beyond_the_bound_and_the_promoted_run_to_their_end() -> None:
    policy = Packhorse(UnitCost(), max_wait_seconds=30.0)
    long, short = make("l", 900, generated=1), make("s", 5, generated=1, runs_since=0, priority=5)
    assert policy.plan([long, short], ONE, 29.0).run == (short,)
    assert policy.plan([long, short], ONE, 30.0).run == (long,)
    long.progress.run(30.0)
    assert policy.plan([long, short], ONE, 500.0).run == (long,)


def test_lengths_that_are_not_followed_are_those_of_recent_jobs() -> None:
    recent = RecentLengths()
    assert recent.forecast(1000).tokens == make("a", 1000).forecast.tokens
    changed = [recent.add(tokens) for tokens in range(1, REFRESH_EVERY + 1)]
    assert changed == [False] * (REFRESH_EVERY - 1) + [True]
    assert recent.forecast(1000).quantile(0.5) == pytest.approx((REFRESH_EVERY + 1) / 2)
    assert recent.forecast(10).quantile(0.9) == 10


def test_without_predictions_a_job_that_outlives_the_recent_gives_way() -> None:
    policy = Packhorse(UnitCost())
    for i in range(2 * REFRESH_EVERY):
        job = make(f"j{i}", 1000, prompt_tokens=10 + i % 7 * 100)
        policy.add(job, 0.0)
        policy.remove(job.job_id)
        policy.observe(job, 10 + i % 7, 0.0)
        policy.forget(job.job_id)
    assert (policy.lengths.trusted, policy.order.trusted) == (False, True)
    outlived, fresh = make("o", 1000, generated=300, runs_since=0), make("f", 1000, generated=1)
    assert policy.plan([outlived, fresh], ONE, 1.0).run == (fresh,)


def test_the_overdue_go_first_but_take_no_more_than_their_share() -> None:
    policy = Packhorse(UnitCost(), max_wait_seconds=30.0, overdue_share=0.5)
    for i in range(4):
        policy.add(make(f"old{i}", 900, at=0.0), 0.0)
    for i in range(4):
        policy.add(make(f"new{i}", 5, at=20.0), 20.0)
    assert drained(policy, 30.0, 6) == ["old0", "new0", "old1", "new1", "old2", "new2"]
    policy.forget("old0")  # an overdue job has ended: another one's turn
    assert drained(policy, 30.0, 1) == ["old3"]


def drained(policy: Packhorse, now: float, count: int) -> list[str]:
    """Ids in the order of being placed."""
    placed = []
    for _ in range(count):
        head = policy.head(now)
        assert head is not None
        placed.append(head.job_id)
        policy.remove(head.job_id)
    return placed


def test_a_job_placed_because_it_was_overdue_is_not_stopped_by_shorter_ones() -> None:
    policy = Packhorse(UnitCost(), max_wait_seconds=30.0)
    old, short = make("old", 900), make("short", 5, generated=1)
    policy.add(old, 0.0)
    assert drained(policy, 30.0, 1) == ["old"]
    old.progress.run(30.0)
    assert policy.plan([old, short], ONE, 31.0).run == (old,)


@pytest.mark.parametrize(("believed", "followed"), [(lambda n: n, True), (lambda n: 901 - n, False)])
def test_a_predictor_is_followed_as_long_as_it_is_right(believed: object, followed: bool) -> None:
    policy, draw = Packhorse(UnitCost()), random.Random(3)
    for i in range(2 * LEAST_JOBS):
        tokens = draw.randint(1, 900)
        job = make(f"j{i}", believed(tokens))  # type: ignore[operator]
        policy.add(job, 0.0)
        policy.remove(job.job_id)
        policy.observe(job, tokens, 0.0)
        policy.forget(job.job_id)
    assert policy.lengths.trusted is followed
    assert first(policy, make("first", 500), make("second", 5)) == ("second" if followed else "first")


def test_jobs_that_wait_are_ordered_anew_when_trust_is_lost() -> None:
    policy, draw = Packhorse(UnitCost()), random.Random(3)
    assert first(policy, make("first", 500), make("second", 5)) == "second"
    for i in range(2 * LEAST_JOBS):
        tokens = draw.randint(1, 900)
        job = make(f"j{i}", 901 - tokens)
        policy.add(job, 0.0)
        policy.remove(job.job_id)
        policy.observe(job, tokens, 0.0)
    assert policy.head(0.0).job_id == "first"  # type: ignore[union-attr]


def test_trust_is_lost_by_constants_and_won_back() -> None:
    trust, draw = Trust(), random.Random(4)
    for _ in range(2 * WINDOW):
        trust.add(7.0, draw.random())
    assert (trust.tau(), trust.trusted) == (0.0, False)
    for _ in range(2 * WINDOW):
        cost = draw.random()
        trust.add(cost, cost)
    assert (trust.tau(), trust.trusted) == (1.0, True)
