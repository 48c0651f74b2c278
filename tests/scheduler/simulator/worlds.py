"""Small clusters and workloads with round numbers, and simulations of them."""

from __future__ import annotations

import random
from typing import Any

from scheduler.cost import WorkerPrior
from scheduler.simulator import Arrivals, ModelSize, SimCluster, Simulation, SimWorkerSpec, Workload

SMALL_MODEL = ModelSize("small", layers=4, kv_heads=1, head_dim=64, max_context_tokens=4096)
COST = WorkerPrior(prefill=(1e-3, 1e-5, 1e-9), decode=(1e-2, 1e-7, 1e-4), transfer=(1e-4, 1e-9))


def cluster(
    prefill: int = 1,
    decode: int = 1,
    *,
    pages: int = 100,
    max_jobs: int = 8,
    prefill_jobs: int = 4,
    cost: WorkerPrior = COST,
    **fields: Any,
) -> SimCluster:
    """All workers alike; `pages` are those of each pool."""
    memory = pages * SMALL_MODEL.slot_bytes("raw") + max_jobs * SMALL_MODEL.residual_bytes
    specs = [
        SimWorkerSpec(f"prefill-{i}", "prefill", cost, prefill_jobs, chunk_tokens=256, **fields) for i in range(prefill)
    ]
    specs += [
        SimWorkerSpec(f"decode-{i}", "decode", cost, max_jobs, kv_memory_bytes=memory, **fields) for i in range(decode)
    ]
    return SimCluster("small", SMALL_MODEL, tuple(specs))


def workload(count: int, seed: int = 0, *, longest: int = 300) -> Workload:
    """Random lengths, one token of output among them."""
    rng = random.Random(seed)
    prompts = [rng.randint(1, 600) for _ in range(count)]
    most = [rng.choice([1, 2, 40, longest]) for _ in range(count)]
    return Workload("random", prompts, [rng.randint(1, limit) for limit in most], most)


def poisson(count: int, rate: float, seed: int = 0) -> tuple[float, ...]:
    rng = random.Random(seed)
    times, now = [], 0.0
    for _ in range(count):
        now += rng.expovariate(rate)
        times.append(now)
    return tuple(times)


def simulation(
    load: Workload, rate: float = 20.0, seed: int = 0, on: SimCluster | None = None, **fields: Any
) -> Simulation:
    cancels = fields.pop("cancels", {})
    return Simulation(on or cluster(), load, Arrivals(poisson(len(load), rate, seed), cancels=cancels), **fields)
