"""A search's result for people, with the reasons, and as plain data for programs. Knows nothing of files or terminals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from typing import Any

from .search import Assignment, Plan, PlanResult

_CLOSE = 1e-6  # relative; flows nearer than this are equal


def render(result: PlanResult) -> str:
    """The text that `packhorse plan` prints."""
    cluster, best, second = result.cluster, result.best, result.runner_up
    lines = [
        f"Model     {result.model.name}: {result.model.params / 1e9:.2f}B parameters, {result.model.weight_bytes / 1e9:.1f} GB in 16 bits",
        f"Cluster   {len(cluster.machines)} machines, {cluster.num_gpus} GPUs, pages over {cluster.link}",
        f"Workload  {result.workload.describe()}",
        f"SLO       {_slo(result)}",
        "",
        f"Best      {best.goodput:.2f} requests/s with {best.kv_format} pages",
        *_table(best),
        *(f"  - {reason}" for reason in reasons(best, result)),
        "",
    ]
    if second:
        lines += [
            f"Runner-up {second.goodput:.2f} requests/s with {second.kv_format} pages ({_relative(second.goodput, best.goodput)})",
            *_table(second),
            *(f"  - {reason}" for reason in reasons(second, result)),
        ]
    else:
        lines += ["Runner-up none: no other plan serves the workload"]
    formats = ", ".join(f"{plan.kv_format} {plan.goodput:.2f}" for plan in result.formats)
    lines += ["", f"By format {formats} requests/s; a less precise one is taken where it brings 1 % or more"]
    return "\n".join([*lines, *(f"Note      {note}" for note in result.notes)])


def reasons(plan: Plan, result: PlanResult) -> list[str]:
    """Which side binds, by what and how far; what the limits leave; how the transfer shows; whether the demand is met."""
    side, other, slack = _binding(plan)
    found = [
        f"{side} binds: {_limits(plan, side)}; {other} could take {slack:+.1%}" if slack > _CLOSE else "both sides bind"
    ]
    found += _network(plan)
    found.append(
        f"TTFT {plan.ttft_seconds:.3g} s for {plan.ttft_share:.0%} of requests at that rate{_of_limit(result.slo.ttft_seconds)}; "
        f"TPOT {plan.tpot_seconds * 1e3:.1f} ms{_of_limit(result.slo.tpot_seconds, 'ms')}"
    )
    found.append(
        f"{plan.shipped_bytes / 1e6:.1f} MB of pages per request; the slowest pair leaves {plan.exposed_seconds * 1e3:.2g} ms of "
        "the transfer after prefill"
    )
    if result.workload.rate:
        share = result.workload.rate / plan.goodput
        verdict = "served" if share <= 1 else "not served: requests would queue without end"
        found.append(f"the workload's {result.workload.rate:.2f} requests/s are {share:.0%} of that: {verdict}")
    return found


def as_data(result: PlanResult) -> dict[str, Any]:
    """JSON-ready: units in the names, rates in requests per second."""
    return {
        "model": {"name": result.model.name, "params": result.model.params, "weight_bytes": result.model.weight_bytes},
        "workload": {
            "name": result.workload.name,
            "mean_prompt_tokens": float(result.workload.prompts.mean()),
            "mean_output_tokens": float(result.workload.outputs.mean()),
            "requests_per_second": result.workload.rate,
        },
        "slo": asdict(result.slo),
        "best": _plan_data(result.best, result),
        "runner_up": _plan_data(result.runner_up, result) if result.runner_up else None,
        "goodput_by_format": {plan.kv_format: plan.goodput for plan in result.formats},
        "notes": list(result.notes),
    }


def _plan_data(plan: Plan, result: PlanResult) -> dict[str, Any]:
    side, _, slack = _binding(plan)
    return {
        "kv_format": plan.kv_format,
        "goodput": plan.goodput,
        "binds": side,
        "slack": slack,
        "prefill_flow": plan.prefill_flow,
        "decode_flow": plan.decode_flow,
        "prefill_rate": plan.prefill_rate,
        "decode_rate": plan.decode_rate,
        "ttft_seconds": plan.ttft_seconds,
        "tpot_seconds": plan.tpot_seconds,
        "exposed_transfer_seconds": plan.exposed_seconds,
        "shipped_bytes": plan.shipped_bytes,
        "apart": list(plan.apart),
        "reasons": reasons(plan, result),
        "machines": [_machine_data(given) for given in plan.assignments],
    }


def _machine_data(given: Assignment) -> dict[str, Any]:
    option = given.option
    prefill = asdict(option.prefill) if option.prefill else {}
    decode = asdict(option.decode) if option.decode else {}
    return {
        "name": given.machine.name,
        "gpu": given.machine.gpu,
        "gpus": given.machine.gpus,
        "nic_gbps": given.machine.nic_gbps,
        "prefill": {"instances": option.prefills, "tp": option.prefill_tp, **prefill},
        "decode": {"instances": option.decodes, "tp": option.decode_tp, **decode},
        "prefill_flow": option.prefill_flow,
        "decode_flow": option.decode_flow,
    }


def _slo(result: PlanResult) -> str:
    ttft, tpot = result.slo.ttft_seconds, result.slo.tpot_seconds
    share = result.cluster.machines[0].assume.slo_attainment
    parts = [f"TTFT at most {ttft:g} s for {share:.0%} of requests"] if ttft is not None else []
    parts += [f"TPOT at most {tpot * 1e3:g} ms"] if tpot is not None else []
    return ", ".join(parts) or "none"


def _binding(plan: Plan) -> tuple[str, str, float]:
    """(the side that binds, the other one, how much more the other could take, as a share)."""
    if plan.prefill_flow <= plan.decode_flow:
        return "prefill", "decode", plan.decode_flow / plan.prefill_flow - 1
    return "decode", "prefill", plan.prefill_flow / plan.decode_flow - 1


def _limits(plan: Plan, side: str) -> str:
    """What bounds the workers of a side: "memory (decode-0), compute (a, b)"."""
    by_limit: dict[str, list[str]] = {}
    for given in plan.assignments:
        rate = given.option.prefill if side == "prefill" else given.option.decode
        if rate:
            by_limit.setdefault(rate.limit, []).append(given.machine.name)
    return ", ".join(f"{limit} on {_names(names)}" for limit, names in by_limit.items())


def _network(plan: Plan) -> list[str]:
    out, into = plan.prefill_rate - plan.prefill_flow, plan.decode_rate - plan.decode_flow
    found = []
    if plan.apart:
        found.append(f"no jobs go from or to {_names(plan.apart)}: transfers over the NIC would break the TPOT limit")
    if out > _CLOSE * plan.prefill_rate:
        found.append(
            f"NICs of prefill machines hold back {out:.2f} requests/s ({out / plan.prefill_rate:.0%} of the prefill rate)"
        )
    if into > _CLOSE * plan.decode_rate:
        found.append(
            f"NICs of decode machines hold back {into:.2f} requests/s ({into / plan.decode_rate:.0%} of the decode rate)"
        )
    return found


def _table(plan: Plan) -> list[str]:
    """One line per split of a kind of machine."""
    rows = [("machines", "GPUs", "prefill", "decode", "prefill/s", "decode/s", "batch", "step")]
    ordered = sorted(plan.assignments, key=_alike)
    for _, alike in groupby(ordered, key=_alike):
        members = list(alike)
        machine, option = members[0].machine, members[0].option
        decode = option.decode
        rows.append(
            (
                _names([given.machine.name for given in members]),
                f"{machine.gpus} x {machine.gpu}",
                f"{option.prefills} x tp{option.prefill_tp}" if option.prefills else "-",
                f"{option.decodes} x tp{option.decode_tp}" if option.decodes else "-",
                f"{sum(given.option.prefill_flow for given in members):.2f}",
                f"{sum(given.option.decode_flow for given in members):.2f}",
                str(decode.batch) if decode else "-",
                f"{decode.step_seconds * 1e3:.1f} ms" if decode else "-",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _alike(given: Assignment) -> tuple[Any, ...]:
    option = given.option
    return (*given.machine.kind, option.prefills, option.prefill_tp, option.decodes, option.decode_tp)


def _names(names: Iterable[str]) -> str:
    """Up to three names; of more, the first, the last and how many."""
    listed = list(names)
    return ", ".join(listed) if len(listed) <= 3 else f"{listed[0]} .. {listed[-1]} ({len(listed)})"


def _relative(value: float, base: float) -> str:
    change = value / base - 1
    return "as much, with less to spare" if abs(change) < _CLOSE else f"{change:+.1%}"


def _of_limit(limit_seconds: float | None, unit: str = "s") -> str:
    if limit_seconds is None:
        return ""
    return f" (limit {limit_seconds * (1e3 if unit == 'ms' else 1):g} {unit})"
