"""Tool pauses of simulated workloads: as many as asked for, before the last token, the same by seed; what they cost, by policy."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from bench.scheduler import run_scheduler
from bench.sim_options import SchedulerOptions
from bench.sim_pauses import MAX_SECONDS, MEDIAN_SECONDS, with_pauses
from scheduler.simulator import Workload

LOAD = Workload("w", [10] * 4000, [1 + i % 40 for i in range(4000)], [64] * 4000)
OPTIONS = SchedulerOptions(requests=300, policy=("fcfs", "lamps"), predictor=("oracle",), load=(0.9,), tool_pauses=0.3)


def test_a_share_of_the_requests_pauses_before_their_last_token() -> None:
    pauses = with_pauses(LOAD, 0.3, seed=1).pauses
    found = [(pause, output) for pause, output in zip(pauses, LOAD.output_tokens, strict=True) if pause is not None]
    assert 0.25 < len(found) / len(LOAD) < 0.33  # one in forty has a single token and cannot pause
    assert all(1 <= after < output for (after, _), output in found)
    assert {output - after for (after, _), output in found} == set(range(1, 40))
    assert statistics.median(seconds for (_, seconds), _ in found) == pytest.approx(MEDIAN_SECONDS, rel=0.15)
    assert all(0 < seconds <= MAX_SECONDS for (_, seconds), _ in found)
    assert sum(pause is None for pause in with_pauses(LOAD, 1.0, seed=1).pauses) == 100


def test_the_seed_decides_and_no_share_is_no_pause() -> None:
    assert with_pauses(LOAD, 0.3, seed=1) == with_pauses(LOAD, 0.3, seed=1)
    assert with_pauses(LOAD, 0.3, seed=1).pauses != with_pauses(LOAD, 0.3, seed=2).pauses
    assert with_pauses(LOAD, 0.0, seed=1) is LOAD


def test_pauses_are_in_the_records_and_the_same_every_time() -> None:
    first, second = (run_scheduler(OPTIONS)["records"] for _ in range(2))
    assert first == second
    without = run_scheduler(replace(OPTIONS, tool_pauses=0.0))["records"]
    assert all(record["completed"] == 300 for record in first)
    for record, plain in zip(first, without, strict=True):
        assert record["requests_per_second"] == plain["requests_per_second"]
        assert record["mean_jct_seconds"] > plain["mean_jct_seconds"] + 0.3 * MEDIAN_SECONDS
