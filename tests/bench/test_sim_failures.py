"""Failures of simulated workers: as many as asked for, the same by seed, never two of one worker at once; what comes of the requests."""

from __future__ import annotations

from itertools import combinations

import pytest

from bench.scheduler import run_scheduler
from bench.sim_failures import draw_failures
from bench.sim_options import SchedulerOptions
from packhorse.errors import ConfigError

WORKERS = ("prefill", "decode-0", "decode-1")


def test_a_worker_fails_again_only_after_it_was_back() -> None:
    failures = draw_failures(WORKERS, 12, 10.0, 120.0, seed=3)
    assert len(failures) == 12
    assert [failure.at for failure in failures] == sorted(failure.at for failure in failures)
    assert {failure.worker_id for failure in failures} == set(WORKERS)
    for one, other in combinations(failures, 2):
        assert one.back_at == one.at + 10.0
        assert one.worker_id != other.worker_id or other.at > one.back_at


def test_the_seed_decides() -> None:
    assert draw_failures(WORKERS, 5, 1.0, 60.0, seed=1) == draw_failures(WORKERS, 5, 1.0, 60.0, seed=1)
    assert draw_failures(WORKERS, 5, 1.0, 60.0, seed=1) != draw_failures(WORKERS, 5, 1.0, 60.0, seed=2)


def test_more_failures_than_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="no place for another on 3 workers within 20 s"):
        draw_failures(WORKERS, 10, 30.0, 20.0, seed=0)


@pytest.mark.parametrize(("field", "value"), [("failures", -1), ("failure_seconds", 0.0)])
def test_what_makes_no_sense_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field}={value}"):
        SchedulerOptions(**{field: value})


def test_every_request_of_a_run_with_failures_ends_and_the_same_every_time() -> None:
    options = SchedulerOptions(requests=300, policy=("fcfs", "packhorse"), load=(0.7,), failures=2, failure_seconds=8.0)
    first, second = (run_scheduler(options)["records"] for _ in range(2))
    assert first == second
    for record in first:
        assert record["completed"] + record["failed"] == 300
        assert record["failed"] > 0
        assert record["max_wait_seconds"] > 2.0  # nothing can be placed on a pair of which one is away
