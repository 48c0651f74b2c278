"""What `predicted` says a job will take, against what the simulator then lets it take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.sim_workloads import find_source, poisson_times
from scheduler.cost import WorkerPrior
from scheduler.predictor.guard import Guarded
from scheduler.simulator import Arrivals, SimCluster, SimOracle, Simulation, a100_cluster, patient_config


def unlike(kv_format: str) -> SimCluster:
    """Two pairs of A100s, and a pair that is three times as slow behind a slower network."""
    cluster = a100_cluster(kv_format, prefill=3, decode=3)
    workers = []
    for worker in cluster.workers:
        if worker.worker_id.endswith("-2"):
            cost = worker.cost
            slow = WorkerPrior(
                *(tuple(3 * value for value in terms) for terms in (cost.prefill, cost.decode)), cost.transfer
            )  # type: ignore[arg-type]
            assert worker.nic_gbps is not None
            network = worker.network_bytes_per_second / 5
            worker = replace(worker, cost=slow, network_bytes_per_second=network, nic_gbps=worker.nic_gbps / 5)
        workers.append(worker)
    return SimCluster("unlike", cluster.model, tuple(workers))


@pytest.mark.parametrize(("rate", "bias", "absolute"), [(4.0, 0.03, 0.05), (10.0, 0.10, 0.15)])
def test_completions_are_predicted_without_bias(rate: float, bias: float, absolute: float) -> None:
    """With the true lengths, light and heavy load: (predicted - actual) / actual, the median of it and of its absolute value."""
    load, _ = find_source("synthetic").draw(600, 3, 8192)
    simulation = Simulation(
        unlike("raw"),
        load,
        Arrivals(poisson_times(600, rate, 3)),
        config=patient_config(placement="predicted"),
        heartbeat_seconds=0.5,
        predictor=Guarded(SimOracle()),
    )
    simulation.run()
    summary = simulation.core.decisions.errors.summary()
    print(f"{rate:g} requests/s: bias {summary.bias:+.1%}, absolute p50 {summary.p50:.1%}, p90 {summary.p90:.1%}")
    assert summary.total == 600
    assert abs(summary.bias) <= bias, summary
    assert summary.p50 <= absolute, summary
