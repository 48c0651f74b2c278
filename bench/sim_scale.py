"""`bench scheduler --scale`: how long it takes to simulate very many requests over very many workers on one core."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from bench.machine import describe_machine
from bench.sim_workloads import SYNTHETIC, find_source, poisson_times
from scheduler.simulator import Arrivals, Simulation, Slo, a100_cluster, patient_config, saturation_rate, summarize

_KV_FORMAT = "k2v2"
_SAMPLE = 2000


@dataclass(frozen=True)
class ScaleOptions:
    """`decode_per_prefill` of the workers decode for one that prefills; `load` is a fraction of measured saturation."""

    requests: int = 1_000_000
    workers: int = 1_000
    decode_per_prefill: int = 4
    load: float = 0.9
    policy: str = "fcfs"
    placement: str = "least-loaded"


def run_scale(options: ScaleOptions) -> dict[str, Any]:
    """The time of one simulation of the synthetic mix, and its figures. Deadlines are the live scheduler's."""
    prefill = max(1, options.workers // (1 + options.decode_per_prefill))
    cluster = a100_cluster(_KV_FORMAT, prefill=prefill, decode=options.workers - prefill)
    small = a100_cluster(_KV_FORMAT, prefill=1, decode=options.decode_per_prefill)
    source = find_source(SYNTHETIC)
    sample, _ = source.draw(_SAMPLE, 0, cluster.model.max_context_tokens)
    rate = options.load * saturation_rate(small, sample, _KV_FORMAT) * prefill
    load, _ = source.draw(options.requests, 0, cluster.model.max_context_tokens)
    deadlines = {"queue_seconds": 120.0, "prefill_seconds": 300.0, "decode_seconds": 3600.0}
    config = patient_config(policy=options.policy, placement=options.placement, **deadlines)
    arrivals = Arrivals(poisson_times(options.requests, rate, 0))
    started, processor = time.perf_counter(), time.process_time()
    records = Simulation(cluster, load, arrivals, config=config, kv_format=_KV_FORMAT).run()
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    return {
        "machine": describe_machine(),
        "options": asdict(options),
        "seconds": seconds,
        "processor_seconds": processor,
        "requests_per_second": rate,
        "figures": asdict(summarize(records, Slo())),
    }


def print_scale(result: dict[str, Any], console: Console) -> None:
    options, figures = result["options"], result["figures"]
    each = result["processor_seconds"] / options["requests"] * 1e6
    for line in (
        f"{options['requests']:,} requests over {options['workers']:,} workers, {options['policy']}, {options['placement']}: "
        f"{result['seconds']:.1f} s ({result['processor_seconds']:.1f} s of processor, {each:.0f} µs per request)",
        f"simulated    {figures['duration_seconds']:.0f} s at {result['requests_per_second']:.0f} requests/s, "
        f"{figures['completed']:,} completed, mean JCT {figures['mean_jct_seconds']:.2f} s",
    ):
        console.print(line, soft_wrap=True, highlight=False)
