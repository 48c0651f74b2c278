"""`bench proof`: what packhorse's policy and pages are worth in simulations, against the targets that were set beforehand.

Each part runs its cases with every seed, keeps their records, and draws its checks from means over seeds. Predictors have learned from
the rest of the data set and learn nothing during a run. Knows nothing of the command line or of tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from bench.machine import describe_machine
from bench.scheduler import Grid, Record
from bench.sim_adversaries import ADVERSARIES
from bench.sim_options import Case, SchedulerOptions
from bench.sim_workloads import Source
from packhorse.errors import ConfigError
from scheduler.policies import POLICIES
from scheduler.policies.packhorse import MAX_WAIT_SECONDS
from scheduler.predictor.guard import Guarded
from scheduler.simulator import saturation_rate

UNLOADED, SLOWER = (
    0.05,
    5.0,
)  # the load that counts as none; how much slower FCFS's mean JCT is where policies are compared
TAIL_LOADS = (0.5, 0.7, 0.8, 0.9)
ADVERSARIAL_LOADS = (0.9, 1.1)
GRID_LOADS = (0.5, 0.7, 0.9, 1.05, 1.2)
GRID_WORKLOADS = ("alpaca", "azure-conv", "azure-code", "mooncake")
BLIND = ("fcfs", "fastserve")  # policies that look at no forecast
DEPLOYMENTS = ("a100-40gb", "a100")
BATCHES = (128, 256, 512, 1024)
NOISE = ("sigma-0.3", "sigma-0.5", "sigma-0.7")
_FEW_SEEDS = 2  # with which rates are looked for where there are many to find
_ROUNDS = 6  # of halving the (logarithmic) interval of a rate: to 1 % or 3 % of it
_NARROW, _WIDE = (0.9, 1.6), (0.6, 3.5)  # of saturation: where a rate is looked for


@dataclass(frozen=True)
class ProofOptions:
    """`lengths` is the workload of all parts but the grid, which has its own."""

    parts: tuple[str, ...] = ("policy", "pages", "tail", "adversarial")
    requests: int = 2000
    seeds: int = 5
    lengths: str = "alpaca"
    workload: tuple[str, ...] = GRID_WORKLOADS

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise ConfigError(f"part={part!r} is not one of {', '.join(PARTS)}", param="part")
        for name in ("requests", "seeds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not a positive number", param=name)


@dataclass(frozen=True)
class Check:
    """One target: what was to be at least (`>=`) or at most (`<=`) the limit, and what it came to."""

    what: str
    measured: float
    sign: str
    limit: float

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.sign == ">=" else self.measured <= self.limit


@dataclass(frozen=True)
class Part:
    name: str
    records: list[Record]
    checks: list[Check]


@dataclass(frozen=True)
class FoundRate:
    """Requests per second. `bound` says that the search came to an end of its span, so that the rate is at least or at most this."""

    rate: float
    bound: str

    def __str__(self) -> str:
        return f"{self.bound}{self.rate:.1f}/s"


class Runs:
    """Cases of one cluster with all seeds. `done` hears of every simulation."""

    def __init__(
        self, options: ProofOptions, done: Callable[[Record], None], cluster: str = "a100", max_batch: int | None = None
    ) -> None:
        shared = SchedulerOptions(
            requests=options.requests,
            cluster=cluster,
            max_batch=max_batch,
            frozen=True,
            prefix_cache=False,  # these clusters' transfers hide behind prefill, so it would cost time and change nothing
        )
        self.grid, self.seeds, self._lengths, self._done = Grid(shared), options.seeds, options.lengths, done
        self.grid.source, self.grid.predictor = _lessons(options.requests)
        self.records: list[Record] = []

    def case(
        self,
        policy: str,
        predictor: str = "none",
        *,
        workload: str | None = None,
        kv_format: str = "raw",
        load: float | None = None,
        rate: float | None = None,
    ) -> Case:
        return Case(workload or self._lengths, kv_format, predictor, "least-loaded", policy, load, rate)

    def run(self, case: Case, seeds: int) -> list[Record]:
        records = [self.grid.run(case, seed) for seed in range(seeds)]
        for record in records:
            self._done(record)
        return records

    def keep(self, case: Case) -> list[Record]:
        records = self.run(case, self.seeds)
        self.records += records
        return records

    def rate_at(self, case: Case, mean_jct: float, span: tuple[float, float], seeds: int) -> FoundRate:
        """The rate at which the case's mean JCT is that many seconds, looked for within `span`, fractions of saturation."""
        saturation = self.grid.saturation(case.workload, case.kv_format)
        low, high = least, most = span[0] * saturation, span[1] * saturation
        for _ in range(_ROUNDS):
            middle = (low * high) ** 0.5
            slower = mean(self.run(replace(case, rate=middle, load=None), seeds), "mean_jct_seconds") > mean_jct
            low, high = (low, middle) if slower else (middle, high)
        return FoundRate((low * high) ** 0.5, "≤ " if low == least else "≥ " if high == most else "")


@cache
def _lessons(requests: int) -> tuple[Callable[[str], Source], Callable[[str, str, int], Guarded | None]]:
    """Data and predictors, which are the same on every cluster, and take longer to make than to use."""
    grid = Grid(SchedulerOptions(requests=requests, frozen=True))
    return grid.source, grid.predictor


def mean(records: Sequence[Record], key: str) -> float:
    return sum(float(record[key]) for record in records) / len(records)


def prove_policy(options: ProofOptions, done: Callable[[Record], None]) -> Part:
    """The order alone, on the same pages, at the rate where FCFS's mean JCT is SLOWER times its unloaded value."""
    runs = Runs(options, done)
    unloaded = mean(runs.keep(runs.case("fcfs", load=UNLOADED)), "mean_jct_seconds")
    rate = runs.rate_at(runs.case("fcfs"), SLOWER * unloaded, _NARROW, options.seeds).rate
    by_name: dict[tuple[str, str], float] = {}
    others = [("ssjf", "learned"), ("fastserve", "none"), ("srpt-oracle", "learned"), ("srpt-oracle", "oracle")]
    ours = [("packhorse", name) for name in ("none", "percentile", "learned", "oracle", *NOISE)]
    for policy, predictor in [("fcfs", "none"), *others, *ours]:
        records = runs.keep(runs.case(policy, predictor, rate=rate))
        by_name[policy, predictor] = mean(records, "mean_jct_seconds")
    fcfs, learned = by_name["fcfs", "none"], by_name["packhorse", "learned"]
    return Part(
        "policy",
        runs.records,
        [
            Check("mean JCT of packhorse, learned / FCFS", learned / fcfs, "<=", 0.55),
            *(
                Check(f"gain of learned / gain of {policy} with oracle", (fcfs - learned) / (fcfs - best), ">=", 0.8)
                for policy, best in ((name, by_name[name, "oracle"]) for name in ("packhorse", "srpt-oracle"))
            ),
        ],
    )


def prove_pages(options: ProofOptions, done: Callable[[Record], None]) -> Part:
    """Pages, order, and both: the rate at the mean JCT that is SLOWER times that of FCFS on raw pages, unloaded.

    Each format has the batch limit of BATCHES with which it saturates latest.
    """
    records: list[Record] = []
    checks: list[Check] = []
    for cluster in DEPLOYMENTS:
        rates: dict[tuple[str, str], FoundRate] = {}
        limit, batches = 0.0, {kv_format: best_batch(options, cluster, kv_format) for kv_format in ("raw", "k2v2")}
        for kv_format, batch in batches.items():
            runs = Runs(options, done, cluster, batch)
            if kv_format == "raw":
                limit = SLOWER * mean(runs.keep(runs.case("fcfs", load=UNLOADED)), "mean_jct_seconds")
            for policy, predictor in (("fcfs", "none"), ("packhorse", "learned"), ("packhorse", "oracle")):
                case = runs.case(policy, predictor, kv_format=kv_format)
                found = runs.rate_at(case, limit, _WIDE, min(_FEW_SEEDS, options.seeds))
                rates[kv_format, f"{policy} {predictor}"] = found
                runs.keep(replace(case, rate=found.rate))
            records += runs.records
        least = rates["raw", "fcfs none"]
        for (kv_format, order), found in rates.items():
            what = f"{cluster}: {kv_format}, batch {batches[kv_format]}, {order}: rate {found} / {least}"
            if kv_format != "raw":
                checks.append(Check(what, found.rate / least.rate, ">=", 2.1))
    return Part("pages", records, checks)


def best_batch(options: ProofOptions, cluster: str, kv_format: str) -> int:
    """The batch limit with which the cluster saturates at the highest rate."""

    def rate(max_batch: int) -> float:
        grid = Grid(SchedulerOptions(cluster=cluster, max_batch=max_batch))
        built = grid.cluster(options.lengths, kv_format)
        load, _ = grid.source(options.lengths).draw(options.requests, 0, built.model.max_context_tokens)
        return saturation_rate(built, load, kv_format)

    return max(BATCHES, key=rate)


def prove_tail(options: ProofOptions, done: Callable[[Record], None]) -> Part:
    """p99 and the longest wait up to 0.9 of saturation."""
    runs = Runs(options, done)
    checks = []
    for load in TAIL_LOADS:
        fcfs = mean(runs.keep(runs.case("fcfs", load=load)), "p99_jct_seconds")
        records = runs.keep(runs.case("packhorse", "learned", load=load))
        ratio, wait = mean(records, "p99_jct_seconds") / fcfs, max(record["max_wait_seconds"] for record in records)
        checks.append(Check(f"load {load:g}: p99 JCT of packhorse, learned / FCFS", ratio, "<=", 1.5))
        checks.append(Check(f"load {load:g}: longest wait of any seed, s", wait, "<=", MAX_WAIT_SECONDS))
    return Part("tail", runs.records, checks)


def prove_adversarial(options: ProofOptions, done: Callable[[Record], None]) -> Part:
    """Predictors that are wrong on purpose: mean JCT against FCFS, and the longest wait against the bound or FCFS's own."""
    runs = Runs(options, done)
    checks = []
    for load in ADVERSARIAL_LOADS:
        fcfs = runs.keep(runs.case("fcfs", load=load))
        bound = MAX_WAIT_SECONDS + max(record["max_wait_seconds"] for record in fcfs)
        for name in ADVERSARIES:
            records = runs.keep(runs.case("packhorse", name, load=load))
            ratio = mean(records, "mean_jct_seconds") / mean(fcfs, "mean_jct_seconds")
            checks.append(Check(f"load {load:g}, {name}: mean JCT / FCFS", ratio, "<=", 1.1))
            wait = max(record["max_wait_seconds"] for record in records)
            checks.append(Check(f"load {load:g}, {name}: longest wait, s", wait, "<=", bound))
    return Part("adversarial", runs.records, checks)


def prove_grid(options: ProofOptions, done: Callable[[Record], None]) -> Part:
    """Every policy with oracle, learned and no prediction; those that look at no forecast once."""
    runs = Runs(options, done)
    for workload in options.workload:
        runs.grid.source(workload)  # one that is missing is known before an hour has gone by
    for workload in options.workload:
        for load in GRID_LOADS:
            for policy in POLICIES:
                for predictor in ("none",) if policy in BLIND else ("none", "learned", "oracle"):
                    runs.keep(runs.case(policy, predictor, workload=workload, load=load))
    return Part("grid", runs.records, [])


PARTS: dict[str, Callable[[ProofOptions, Callable[[Record], None]], Part]] = {
    "policy": prove_policy,
    "pages": prove_pages,
    "tail": prove_tail,
    "adversarial": prove_adversarial,
    "grid": prove_grid,
}


def run_proof(
    options: ProofOptions, done: Callable[[Record], None] = lambda record: None, ended: Callable[[Part], None] = print
) -> dict[str, Any]:
    """All parts; `ended` hears of each. Raises ConfigError where data are missing."""
    parts = []
    for name in options.parts:
        parts.append(PARTS[name](options, done))
        ended(parts[-1])
    return {
        "machine": describe_machine(),
        "options": asdict(options),
        "records": [{"part": part.name, **record} for part in parts for record in part.records],
        "checks": [{"part": part.name, **asdict(check), "met": check.met} for part in parts for check in part.checks],
    }
