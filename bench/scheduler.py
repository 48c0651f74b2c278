"""`bench scheduler`: simulates every case of the grid with every seed. Knows nothing of the command line, nor of torch."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from bench.machine import describe_machine
from bench.sim_failures import draw_failures
from bench.sim_options import Case, SchedulerOptions
from bench.sim_pauses import with_pauses
from bench.sim_predictor import Remembered, warm_predictor
from bench.sim_workloads import Source, find_source, own_times, poisson_times
from packhorse.config import SchedulerConfig
from packhorse.errors import ConfigError
from scheduler.predictor.guard import Guarded
from scheduler.simulator import (
    CLUSTERS,
    LLAMA_8B,
    Arrivals,
    Failure,
    Figures,
    SimCluster,
    Simulation,
    patient_config,
    planned_cluster,
    saturation_rate,
    summarize,
)
from scheduler.simulator.machines import MAX_BATCH

FIGURES = (
    "mean_jct_seconds", "p50_jct_seconds", "p99_jct_seconds", "mean_ttft_seconds", "max_wait_seconds", "goodput",
    "throughput_tokens_per_second", "gigabytes_shipped", "held_share",
)  # fmt: skip
_PLAN_SAMPLE, _SATURATION_SAMPLE = 500, 2000
LIVE = SchedulerConfig()
HEARTBEAT_SECONDS = LIVE.heartbeat_seconds
Record = dict[str, Any]


class Grid:
    """Runs cases; what several of them share (data, clusters, saturation) is made once."""

    def __init__(self, options: SchedulerOptions) -> None:
        self.options = options
        self.source: Callable[[str], Source] = cache(find_source)
        self.cluster: Callable[[str, str], SimCluster] = cache(self._cluster)
        self.saturation: Callable[[str, str], float] = cache(self._saturation)
        self.predictor: Callable[[str, str, int], Guarded | None] = cache(self._predictor)

    def rate(self, case: Case) -> float:
        """Requests per second."""
        if case.rate is not None:
            return case.rate
        assert case.load is not None
        return case.load * self.saturation(case.workload, self.options.load_of or case.kv_format)

    def run(self, case: Case, seed: int) -> Record:
        options, cluster = self.options, self.cluster(case.workload, case.kv_format)
        in_order = options.arrivals == "trace"
        source, context = self.source(case.workload), cluster.model.max_context_tokens
        load, times = source.draw(options.requests, seed, context, in_order=in_order)
        load = with_pauses(load, options.tool_pauses, seed)
        rate = self.rate(case)
        arrivals = own_times(times, rate) if in_order else poisson_times(options.requests, rate, seed)
        predictor = self.predictor(case.predictor, case.workload, seed)
        simulation = Simulation(
            cluster,
            load,
            Arrivals(arrivals),
            config=patient_config(policy=case.policy, placement=case.placement, **self._notices()),
            kv_format=case.kv_format,
            predictor=predictor if options.frozen else deepcopy(predictor),
            learns=not options.frozen,
            failures=self._failures(cluster, arrivals[-1], seed),
            heartbeat_seconds=HEARTBEAT_SECONDS,
            named_devices=options.named_devices,
            prefix_cache=options.prefix_cache,
        )
        return _record(case, seed, rate, cluster, summarize(simulation.run(), options.slo))

    def _notices(self) -> dict[str, float]:
        """Where workers fail, the scheduler notices it as soon as a live one does."""
        return {"worker_timeout_seconds": LIVE.worker_timeout_seconds} if self.options.failures else {}

    def _failures(self, cluster: SimCluster, until: float, seed: int) -> list[Failure]:
        workers = [spec.worker_id for spec in cluster.workers]
        return draw_failures(workers, self.options.failures, self.options.failure_seconds, until, seed)

    def _predictor(self, name: str, workload: str, seed: int) -> Guarded | None:
        options = self.options
        in_order = options.arrivals == "trace"
        predictor = warm_predictor(name, self.source(workload), options.requests, seed, in_order=in_order)
        return Guarded(Remembered(predictor)) if options.frozen and predictor is not None else predictor

    def _cluster(self, workload: str, kv_format: str) -> SimCluster:
        options, name = self.options, self.options.cluster
        if name in CLUSTERS:
            return CLUSTERS[name](kv_format, options.max_batch or MAX_BATCH)
        path = Path(name)
        if path.suffix not in (".yaml", ".yml"):
            raise ConfigError(f"cluster={name!r} is no YAML file and not one of {', '.join(CLUSTERS)}", param="cluster")
        source = self.source(workload)
        load, _ = source.draw(min(_PLAN_SAMPLE, len(source)), 0, LLAMA_8B.max_context_tokens)
        lengths = list(load.prompt_tokens), list(load.output_tokens)
        return planned_cluster(path, LLAMA_8B, *lengths, kv_format, options.max_batch)

    def _saturation(self, workload: str, kv_format: str) -> float:
        cluster = self.cluster(workload, kv_format)
        load, _ = self.source(workload).draw(_SATURATION_SAMPLE, 0, cluster.model.max_context_tokens)
        return saturation_rate(cluster, load, kv_format)


def run_saturation(options: SchedulerOptions) -> dict[str, Any]:
    """The rate at which each workload, format, placement and policy saturates, and its share of the first placement's."""
    grid, records = Grid(options), []
    for workload, kv_format, policy in product(options.workload, options.kv_format, options.policy):
        cluster = grid.cluster(workload, kv_format)
        load, _ = grid.source(workload).draw(_SATURATION_SAMPLE, 0, cluster.model.max_context_tokens)
        rates = [
            saturation_rate(cluster, load, kv_format, policy=policy, placement=placement)
            for placement in options.placement
        ]
        for placement, rate in zip(options.placement, rates, strict=True):
            shown = {"workload": workload, "kv_format": kv_format, "cluster": cluster.name, "policy": policy}
            tokens = rate * sum(load.output_tokens) / len(load)
            figures = {"requests_per_second": rate, "tokens_per_second": tokens, "of_the_first": rate / rates[0]}
            records.append({**shown, "placement": placement, **figures})
    return {"machine": describe_machine(), "options": asdict(options), "records": records}


def run_scheduler(options: SchedulerOptions, done: Callable[[Record], None] = lambda record: None) -> dict[str, Any]:
    """All records, with what they were made with. Raises ConfigError for names and files that are unknown."""
    grid, records = Grid(options), []
    for case in options.cases():
        for seed in range(options.seeds):
            record = grid.run(case, seed)
            records.append(record)
            done(record)
    return {"machine": describe_machine(), "options": asdict(options), "records": records}


def _record(case: Case, seed: int, rate: float, cluster: SimCluster, figures: Figures) -> Record:
    shown = asdict(figures)
    fields = ("completed", "failed", "duration_seconds", *FIGURES)
    return {
        **{name: value for name, value in asdict(case).items() if name != "rate"},
        "seed": seed,
        "requests": figures.requests,
        "requests_per_second": rate,
        "cluster": cluster.name,
        **{name: shown[name] for name in fields},
    }
