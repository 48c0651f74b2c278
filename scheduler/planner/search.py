"""The search: every split of every machine (options.py) in every KV format, the best plan and the runner-up.

All machines of a plan have one format: the scheduler registers workers of one KV layout alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from packhorse.errors import ConfigError
from scheduler.pages import KV_FORMATS

from .cluster import Cluster, Machine
from .cost import GIGA, PageSizes
from .frontier import KEPT, Choice, best_choices
from .model_shape import ModelShape
from .options import TP_DEGREES, Option, Options, Problem
from .rates import Demand, Slo, ttft_quantile
from .workload import Workload

# Formats that lose no answers against raw pages in docs/quality.md; the most precise one first.
DEFAULT_FORMATS = ("raw", "k8v8", "k4v4", "k4v2")
FORMAT_GAIN = 0.01  # a less precise format must bring at least this share more goodput
_TIGHTENINGS = 4


@dataclass(frozen=True)
class Assignment:
    machine: Machine
    option: Option


@dataclass(frozen=True)
class Plan:
    """Flows in requests per second; `goodput` is the smaller one. Rates are what the workers alone sustain, without NICs.

    `exposed_seconds` is the largest mean, over the plan's pairs of machines, of the transfer that prefill does not hide; it comes
    between token 1 and token 2. Machines in `apart` send no jobs and get none. `ttft_seconds` is met by `ttft_share` of the requests
    when the goodput is offered.
    """

    kv_format: str
    assignments: tuple[Assignment, ...]
    exposed_seconds: float
    shipped_bytes: float
    ttft_seconds: float
    ttft_share: float
    tpot_seconds: float
    apart: tuple[str, ...] = ()

    @property
    def prefill_flow(self) -> float:
        return sum(given.option.prefill_flow for given in self.assignments)

    @property
    def decode_flow(self) -> float:
        return sum(given.option.decode_flow for given in self.assignments)

    @property
    def prefill_rate(self) -> float:
        return sum(given.option.prefill_rate for given in self.assignments)

    @property
    def decode_rate(self) -> float:
        return sum(given.option.decode_rate for given in self.assignments)

    @property
    def goodput(self) -> float:
        return min(self.prefill_flow, self.decode_flow)


@dataclass(frozen=True)
class PlanResult:
    """`best` and `runner_up` are of one format and differ in their flows (None: no other plan does). `formats`: each format's best."""

    best: Plan
    runner_up: Plan | None
    formats: tuple[Plan, ...]
    workload: Workload
    model: ModelShape
    slo: Slo
    cluster: Cluster
    notes: tuple[str, ...] = field(default=())


def search(
    cluster: Cluster,
    model: ModelShape,
    workload: Workload,
    slo: Slo,
    formats: Sequence[str] = DEFAULT_FORMATS,
    max_tp: int = TP_DEGREES[-1],
) -> PlanResult:
    """The plans with the most goodput. Raises ConfigError when no plan serves the workload, with the reasons."""
    unknown = [name for name in formats if name not in KV_FORMATS]
    if unknown or not formats:
        raise ConfigError(f"KV format {unknown[0] if unknown else ''!r} is unknown; allowed: {', '.join(KV_FORMATS)}")
    longest = int((workload.prompts + workload.outputs).max())
    if longest > model.max_context_tokens:
        raise ConfigError(
            f"workload {workload.name}: its longest request has {longest} tokens; {model.name} is served up to "
            f"{model.max_context_tokens}"
        )
    demand, found, refused = Demand(workload), dict[str, list[Plan]](), dict[str, str]()
    for kv_format in sorted(set(formats), key=KV_FORMATS.index):
        try:
            PageSizes(model, kv_format).check()
            found[kv_format] = _plans(cluster, Problem(model, demand, slo, kv_format, slo.tpot_seconds, max_tp))
        except ConfigError as error:
            refused[kv_format] = error.message
    if not found:
        raise ConfigError(next(iter(refused.values())))
    most = max(plans[0].goodput for plans in found.values())
    best, *others = next(plans for plans in found.values() if plans[0].goodput * (1 + FORMAT_GAIN) >= most)
    notes = tuple(f"{name}: {reason}" for name, reason in refused.items())
    bests = tuple(plans[0] for plans in found.values())
    return PlanResult(best, others[0] if others else None, bests, workload, model, slo, cluster, notes)


def _plans(cluster: Cluster, problem: Problem) -> list[Plan]:
    """The best plan and the runner-up in one format."""
    limit, plans = problem.slo.tpot_seconds, _solve(cluster, problem)
    if limit is None or all(plan.tpot_seconds <= limit for plan in plans):
        return plans
    within = _within_tpot(cluster, problem, limit)
    if not within:
        raise ConfigError(
            f"transfers add {plans[0].exposed_seconds:.3g} s after token 1, too much for the TPOT limit of {limit:g} s"
        )
    return within


def _within_tpot(cluster: Cluster, problem: Problem, limit: float) -> list[Plan]:
    """The two best plans where transfers add too much to TPOT: decode steps get less of it, or the slowest NICs carry nothing.

    The latter are left out one after the other, as long as what the others could carry is more than what was found.
    """
    found: list[Plan] = []
    for least in (0.0, *sorted({machine.nic_gbps for machine in cluster.machines})[1:], float("inf")):
        left = limit
        for _ in range(_TIGHTENINGS + 1):
            try:
                plans = _solve(cluster, replace(problem, tpot_seconds=left, least_nic_gbps=least))
            except ConfigError:
                break
            if left == limit and len(found) == KEPT and plans[0].goodput <= found[-1].goodput:
                return found
            if plans[0].tpot_seconds <= limit:
                found = _best(found + [plan for plan in plans if plan.tpot_seconds <= limit])
                break
            left = limit - plans[0].exposed_seconds / problem.demand.decoded_tokens
    return found


def _best(plans: Sequence[Plan]) -> list[Plan]:
    """The two best ones whose flows differ."""
    by_flows = {(round(plan.prefill_flow, 9), round(plan.decode_flow, 9)): plan for plan in reversed(plans)}
    return sorted(by_flows.values(), key=lambda plan: plan.goodput, reverse=True)[:KEPT]


def _solve(cluster: Cluster, problem: Problem) -> list[Plan]:
    options = Options(problem)
    groups = [(machines, options.of(machines[0])) for machines in _alike(cluster.machines)]
    flows = [(len(machines), [(o.prefill_flow, o.decode_flow) for o in given]) for machines, given in groups]
    plans = [_plan(choice, groups, options) for choice in best_choices(flows) if choice.order[0] > 0]
    if not plans:
        raise ConfigError(_why_nothing(groups, options))
    return plans


def _alike(machines: Sequence[Machine]) -> list[list[Machine]]:
    groups: dict[object, list[Machine]] = {}
    for machine in machines:
        groups.setdefault(machine.kind, []).append(machine)
    return list(groups.values())


def _plan(choice: Choice, groups: Sequence[tuple[list[Machine], list[Option]]], options: Options) -> Plan:
    waiting = [iter(machines) for machines, _ in groups]
    assignments = tuple(
        Assignment(next(waiting[group]), groups[group][1][option])
        for group, option, count in choice.counts
        for _ in range(count)
    )
    problem, exposed = options.problem, _exposed_seconds(assignments, options)
    decodes = [given.option for given in assignments if given.option.decode]
    step = max(option.decode.step_seconds for option in decodes if option.decode)
    load = choice.order[0] / choice.prefill
    share = assignments[0].machine.assume.slo_attainment
    return Plan(
        kv_format=problem.kv_format,
        assignments=assignments,
        exposed_seconds=exposed,
        shipped_bytes=problem.demand.mean_shipped_bytes(problem.sizes),
        ttft_seconds=max(_ttft_quantiles(assignments, options, load, share)),
        ttft_share=share,
        tpot_seconds=step + exposed / problem.demand.decoded_tokens,
        apart=tuple(given.machine.name for given in assignments if not problem.crosses(given.machine)),
    )


def _ttft_quantiles(assignments: Sequence[Assignment], options: Options, load: float, share: float) -> Iterator[float]:
    """Of each prefill instance when it gets `load` of its rate."""
    for given in {(each.machine.kind, each.option): each for each in assignments}.values():
        option = given.option
        if option.prefill and option.prefill.rate:
            rate = option.prefill.rate * load * option.prefill_flow / option.prefill_rate
            yield ttft_quantile(options.instance(given.machine, option.prefill_tp), options.problem.demand, rate, share)


def _exposed_seconds(assignments: Sequence[Assignment], options: Options) -> float:
    """The largest mean over pairs of machines. Layers leave while later ones compute: at least the last layer's pages are exposed."""
    crossing = [given for given in assignments if options.problem.crosses(given.machine)]
    receivers = sorted((given.machine.nic_gbps, given.machine.name) for given in crossing if given.option.decode_flow)
    pairs: dict[tuple[object, ...], tuple[Assignment, float]] = {}
    for given in crossing:
        slowest = next((nic for nic, name in receivers if name != given.machine.name), None)
        if given.option.prefill_flow and slowest is not None:
            pairs[given.machine.kind, given.option.prefill_tp, slowest] = given, slowest
    return max((_exposed(given, nic_gbps, options) for given, nic_gbps in pairs.values()), default=0.0)


def _exposed(sender: Assignment, nic_gbps: float, options: Options) -> float:
    """From a machine to one with a NIC of `nic_gbps`, in the mean."""
    machine, prompts = sender.machine, options.problem.demand.workload.prompts
    shipped, layers = options.problem.sizes.shipped(prompts), options.problem.model.layers
    rate = min(machine.nic_gbps, nic_gbps) * GIGA / 8 * machine.assume.nic_share
    hidden = options.instance(machine, sender.option.prefill_tp).prefill_seconds(prompts) * (layers - 1) / layers
    return float(np.mean(np.maximum(shipped / rate / layers, shipped / rate - hidden)))


def _why_nothing(groups: Sequence[tuple[list[Machine], list[Option]]], options: Options) -> str:
    reasons = []
    for machines, given in groups:
        prefill, decode = options.refusals(machines[0])
        cannot = []
        if not any(option.prefill_flow for option in given):
            cannot.append(f"cannot prefill: {prefill}")
        if not any(option.decode_flow for option in given):
            cannot.append(f"cannot decode: {decode}")
        reasons.append(
            f"{machines[0].name} ({machines[0].gpus} x {machines[0].gpu}) {' and '.join(cannot) or 'is too few'}"
        )
    return f"no plan serves the workload in {options.problem.kv_format}: {'; '.join(reasons)}"
