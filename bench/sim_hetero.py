"""`bench scheduler --heterogeneous`: what placement is worth on clusters of unlike machines, against round robin.

Where a closed loop keeps every place taken, placements hardly differ. Users do not load a cluster so; measured is therefore
- the highest rate of an open loop at which a share of the requests keeps the limits of TTFT and TPOT, the measure of DistServe and of the
  planner, for two shares: at the lower one the slow workers may fail their requests, at the higher one hardly any request may fail;
- the throughput of a batch: all requests at once, output tokens over the time until the last one is done, the measure of offline use;
- the mean JCT at the rate that round robin still sustains for the lower share.

Round robin is taken in two forms: `round-robin` binds a job to workers when it starts, so one central queue serves whoever has room;
`bound-round-robin` binds it when it arrives, as balancers without a queue of their own do, and as published comparisons commonly mean.
Roles and degrees of every machine are the planner's, the same for all placements. Knows nothing of the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.machine import describe_machine
from bench.sim_workloads import SYNTHETIC, find_source, poisson_times
from packhorse.config import SchedulerConfig
from scheduler.predictor.guard import Guarded
from scheduler.simulator import (
    LLAMA_8B,
    Arrivals,
    Figures,
    SimCluster,
    SimOracle,
    Simulation,
    Slo,
    Workload,
    patient_config,
    planned_cluster,
    summarize,
)

CLUSTERS = Path(__file__).parent.parent / "examples" / "clusters"
Case = tuple[str, str]  # placement, predictor
BASE = "round-robin"
BASES: tuple[Case, ...] = ((BASE, "none"), ("bound-round-robin", "none"))
_PLAN_SAMPLE = 500
_PRECISION = 1.03  # of the rates found
_LEAST_RATE, _MOST_RATE = 0.5, 1e4  # searched; above that a run is over before a queue can build up
_FIRST_GUESS, _NEAR = 40.0, 1.1  # where the search starts, and its steps from another seed's rate
Record = dict[str, Any]


@dataclass(frozen=True)
class HeteroOptions:
    """`targets`: how much more than round robin is aimed at, by cluster file. `cases` come after BASES; predictors are none or oracle."""

    targets: tuple[tuple[str, float], ...] = (("two-tier", 0.30), ("mixed", 1.00))
    cases: tuple[Case, ...] = (("least-loaded", "none"), ("predicted", "none"), ("predicted", "oracle"))
    kv_formats: tuple[str, ...] = ("raw", "k4v2")
    requests: int = 1500
    seeds: int = 5
    slo: Slo = field(default_factory=lambda: Slo(2.0, 0.1))
    attainments: tuple[float, ...] = (0.90, 0.99)


def run_hetero(options: HeteroOptions | None = None, done: Callable[[Record], None] = lambda record: None) -> Record:
    """One record for each format, cluster, seed and case."""
    options = options or HeteroOptions()
    records = []
    for kv_format, (name, target) in product(options.kv_formats, options.targets):
        trial = _Trial(options, name, kv_format)
        for seed, case in product(range(options.seeds), (*BASES, *options.cases)):
            record = {"target": target, **trial.record(case, seed)}
            records.append(record)
            done(record)
    return {"machine": describe_machine(), "options": asdict(options), "records": records}


class _Trial:
    """One cluster with pages of one format."""

    def __init__(self, options: HeteroOptions, name: str, kv_format: str) -> None:
        self.options, self.name, self.kv_format = options, name, kv_format
        self._source = find_source(SYNTHETIC)
        self._cluster = _cluster(name, kv_format)
        self._rates: dict[tuple[Case, float], float] = {}  # the newest seed's: where to look first
        self._within: dict[tuple[Case, int, float], float] = {}  # shares in the SLO by case, seed and rate
        self._base: dict[int, float] = {}  # round robin's rate for the first share, by seed

    def record(self, case: Case, seed: int) -> Record:
        rates = {_key(share): self._highest_rate(case, seed, share) for share in self.options.attainments}
        base = self._base.setdefault(seed, next(iter(rates.values())))
        batch, at_base = self._run(case, seed, None), self._run(case, seed, base)
        return {
            "cluster": self.name,
            "kv_format": self.kv_format,
            "placement": case[0],
            "predictor": case[1],
            "seed": seed,
            **rates,
            "batch_tokens_per_second": batch.throughput_tokens_per_second,
            "batch_seconds": batch.duration_seconds,
            "mean_jct_seconds": at_base.mean_jct_seconds,
            "p99_jct_seconds": at_base.p99_jct_seconds,
            "at_requests_per_second": base,
        }

    def _highest_rate(self, case: Case, seed: int, share: float) -> float:
        """Requests per second at which that share is in the SLO; 0 where not even one in two seconds gives it.

        By steps of a factor from a guess to both sides of it, then by bisection.
        """
        known = self._rates.get((case, share), _FIRST_GUESS)
        low = high = max(known, _LEAST_RATE)
        factor = _NEAR if (case, share) in self._rates else 2.0
        if self._holds(case, seed, low, share):
            while self._holds(case, seed, high := high * factor, share) and high < _MOST_RATE:
                low = high
        else:
            while low > _LEAST_RATE and not self._holds(case, seed, low := max(_LEAST_RATE, low / factor), share):
                high = low
        if low <= _LEAST_RATE and not self._holds(case, seed, low, share):
            low = high = 0.0
        while high > _PRECISION * low:
            middle = (low * high) ** 0.5
            low, high = (middle, high) if self._holds(case, seed, middle, share) else (low, middle)
        self._rates[case, share] = low
        return low

    def _holds(self, case: Case, seed: int, rate: float, share: float) -> bool:
        run = (case, seed, rate)
        if run not in self._within:
            figures = self._run(case, seed, rate)
            self._within[run] = figures.goodput * figures.duration_seconds / figures.requests
        return self._within[run] >= share

    def _run(self, case: Case, seed: int, rate: float | None) -> Figures:
        """`rate` None: all at once."""
        load, count = self._load(seed), self.options.requests
        simulation = Simulation(
            self._cluster,
            load,
            Arrivals(poisson_times(count, rate, seed) if rate is not None else [0.0] * count),
            config=patient_config(placement=case[0]),
            kv_format=self.kv_format,
            predictor=Guarded(SimOracle()) if case[1] == "oracle" else None,
            heartbeat_seconds=SchedulerConfig().heartbeat_seconds,
        )
        return summarize(simulation.run(), self.options.slo)

    def _load(self, seed: int) -> Workload:
        load, _ = self._source.draw(self.options.requests, seed, self._cluster.model.max_context_tokens)
        return load


def _cluster(name: str, kv_format: str) -> SimCluster:
    sample, _ = find_source(SYNTHETIC).draw(_PLAN_SAMPLE, 0, LLAMA_8B.max_context_tokens)
    lengths = list(sample.prompt_tokens), list(sample.output_tokens)
    return planned_cluster(CLUSTERS / f"{name}.yaml", LLAMA_8B, *lengths, kv_format, None)


# ---- the table


def print_hetero(result: Record, console: Console) -> None:
    """A table for each format: means over the seeds with half their range; gains over either round robin, with the seeds' range."""
    for kv_format in result["options"]["kv_formats"]:
        records = [record for record in result["records"] if record["kv_format"] == kv_format]
        console.print(_table(kv_format, records, result["options"]))


def _table(kv_format: str, records: list[Record], options: dict[str, Any]) -> Table:
    slo, shares = options["slo"], options["attainments"]
    title = (
        f"{kv_format} pages, {options['requests']} requests, {options['seeds']} seeds; requests/s with a share "
        f"within TTFT {slo['ttft_seconds']:g} s and TPOT {slo['tpot_seconds']:g} s"
    )
    measures = [(_key(share), f"{share:.0%} in SLO /s") for share in shares]
    measures += [("batch_tokens_per_second", "batch tokens/s"), ("mean_jct_seconds", "mean JCT s")]
    table = Table("cluster", "placement", "lengths", *(head for _, head in measures), "target", title=title)
    for column in table.columns[3:]:
        column.justify = "right"
    keys = [key for key, _ in measures]
    for name, target in options["targets"]:
        for case in (*BASES, *map(tuple, options["cases"])):
            mine = _of(records, name, case)
            table.add_row(name, *case, *(_spread([record[key] for record in mine]) for key in keys), "")
            for base in BASES if case not in BASES else ():
                gains = (_gain(mine, _of(records, name, base), key) for key in keys)
                table.add_row("", f"  over {base[0]}", "", *gains, f"{target:+.0%}")
    return table


def _of(records: list[Record], cluster: str, case: Case) -> list[Record]:
    key = (cluster, *case)
    return [record for record in records if (record["cluster"], record["placement"], record["predictor"]) == key]


def _key(share: float) -> str:
    return f"slo_{share:.0%}_requests_per_second".replace("%", "")


def _spread(values: list[float]) -> str:
    mean, half = sum(values) / len(values), (max(values) - min(values)) / 2
    return f"{mean:,.0f} ± {half:,.0f}" if mean >= 1000 else f"{mean:.1f} ± {half:.1f}"


def _gain(mine: list[Record], base: list[Record], key: str) -> str:
    """The quotient of the means, and the least and the most of any seed."""
    if any(record[key] == 0 for record in base):
        return "none to compare with"
    gains = [one[key] / other[key] - 1 for one, other in zip(mine, base, strict=True)]
    mean = sum(record[key] for record in mine) / sum(record[key] for record in base) - 1
    return f"{mean:+.0%} ({min(gains):+.0%} to {max(gains):+.0%})"
