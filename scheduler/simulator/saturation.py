"""The saturation of a cluster under a workload: the rate at which requests complete while there is always another one waiting."""

from __future__ import annotations

import numpy as np

from scheduler.simulator.cluster import SimCluster
from scheduler.simulator.simulation import Simulation, patient_config
from scheduler.simulator.workload import Arrivals, Workload

LEAST_REQUESTS = 500
HEARTBEAT_SECONDS = 0.5
_FEW = 100  # workers whose heartbeats cost little
_ROUNDS = 6  # requests per place of the cluster: enough that filling and draining can be left out
_FROM, _TO = 0.35, 0.85  # of the completions


def saturation_rate(
    cluster: SimCluster, workload: Workload, kv_format: str, *, policy: str = "fcfs", placement: str = "least-loaded"
) -> float:
    """Requests per second, by a closed loop; by default first come, first served, with the placement that balances counts.

    The loop keeps every place of the cluster busy; the rate is of the completions between the 35th and the 85th of a hundred.
    """
    places = cluster.max_jobs
    count = max(LEAST_REQUESTS, _ROUNDS * places)
    several = repeated(workload, count)
    simulation = Simulation(
        cluster,
        several,
        Arrivals(concurrency=2 * places),
        config=patient_config(policy=policy, placement=placement),
        heartbeat_seconds=HEARTBEAT_SECONDS if len(cluster.workers) <= _FEW else None,
        kv_format=kv_format,
    )
    ended = np.sort(np.asarray(simulation.run().ended))
    first, last = int(_FROM * count), int(_TO * count)
    return float((last - first) / (ended[last] - ended[first]))


def repeated(workload: Workload, count: int) -> Workload:
    """The workload again and again, `count` requests in all, without prompts and priorities."""
    times = -(-count // len(workload))
    columns = (workload.prompt_tokens, workload.output_tokens, workload.max_tokens)
    prompt, output, most = (list(column) * times for column in columns)
    return Workload(workload.name, prompt[:count], output[:count], most[:count])
