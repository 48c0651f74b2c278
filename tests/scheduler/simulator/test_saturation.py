"""The measured saturation against what the decode worker's cost says, and what lies around it."""

from __future__ import annotations

import pytest

from scheduler.cost import WorkerPrior
from scheduler.simulator import Arrivals, Simulation, Slo, Workload, saturation_rate, summarize
from tests.scheduler.simulator.worlds import cluster, poisson

COST = WorkerPrior(prefill=(1e-5, 0.0, 0.0), decode=(1e-2, 0.0, 1e-3), transfer=(0.0, 0.0))


def test_it_is_the_batch_over_its_time() -> None:
    load = Workload("same", [50] * 100, [101] * 100, [101] * 100)
    rate = saturation_rate(cluster(1, 2, max_jobs=10, cost=COST), load, "raw")
    # a place stands empty for a few of a job's 100 steps: until its next job is prefilled and the step under way ends
    assert rate == pytest.approx(2 * 10 / (100 * (1e-2 + 10 * 1e-3)), rel=0.06)


def test_pages_bound_it_where_they_are_few() -> None:
    load = Workload("same", [50] * 100, [101] * 100, [101] * 100)  # two pages each
    rate = saturation_rate(cluster(1, 1, pages=8, max_jobs=10, cost=COST), load, "raw")
    assert rate == pytest.approx(4 / (100 * (1e-2 + 4 * 1e-3)), rel=0.06)


def test_the_queue_grows_above_it_alone() -> None:
    load = Workload("same", [50] * 600, [101] * 600, [101] * 600)
    small = cluster(1, 1, max_jobs=10, cost=COST)
    rate = saturation_rate(small, load, "raw")
    waits = [
        summarize(Simulation(small, load, Arrivals(poisson(600, rate * share))).run(), Slo()).max_wait_seconds
        for share in (0.6, 1.4)
    ]
    assert waits[0] < 1.0 < 10.0 < waits[1]
