"""A single server, first come first served, with Poisson arrivals: the mean wait is Pollaczek and Khinchine's."""

from __future__ import annotations

import math
import random

import pytest

from scheduler.cost import WorkerPrior
from scheduler.simulator import Workload
from tests.scheduler.simulator.worlds import cluster, simulation

STEP_SECONDS = 0.1
COST = WorkerPrior(prefill=(1e-9, 0.0, 0.0), decode=(STEP_SECONDS, 0.0, 0.0), transfer=(0.0, 0.0))
COUNT = 12_000


@pytest.mark.parametrize(("lengths", "load"), [((11,), 0.5), ((11,), 0.8), ((3, 21), 0.7)])
def test_mean_wait_of_one_server(lengths: tuple[int, ...], load: float) -> None:
    services = [(length - 1) * STEP_SECONDS for length in lengths]
    mean, square = sum(services) / len(services), sum(s * s for s in services) / len(services)
    rate = load / mean
    expected = rate * square / (2 * (1 - load))
    rng = random.Random(7)
    output = [rng.choice(lengths) for _ in range(COUNT)]
    one = cluster(max_jobs=1, prefill_jobs=1, cost=COST, network_bytes_per_second=1e15)
    records = simulation(Workload("one", [1] * COUNT, output, [30] * COUNT), rate, seed=3, on=one).run()
    waits = [begun - arrived for begun, arrived in zip(records.prefill_started, records.arrived, strict=True)]
    # 12,000 dependent waits: the standard error of their mean is 2 to 4 % at these loads
    assert math.fsum(waits) / COUNT == pytest.approx(expected, rel=0.1)
