"""The table of `bench scheduler`: the mean over seeds, and half the range, of each case. This file computes nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

_CASE = ("workload", "kv_format", "cluster", "predictor", "placement", "requests_per_second", "load", "policy")
_COLUMNS = (
    ("mean JCT s", "mean_jct_seconds"), ("p99 JCT s", "p99_jct_seconds"), ("TTFT s", "mean_ttft_seconds"),
    ("max wait s", "max_wait_seconds"), ("goodput /s", "goodput"), ("tokens/s", "throughput_tokens_per_second"),
    ("sent GB", "gigabytes_shipped"), ("held", "held_share"),
)  # fmt: skip
Record = dict[str, Any]


def print_scheduler(result: dict[str, Any], console: Console) -> None:
    """One table for each workload, format, cluster and predictor."""
    cases = seeds_together(result["records"])
    for title, group in groupby(cases, key=lambda records: [records[0][name] for name in _CASE[:3]]):
        console.print(_table(" · ".join(map(str, title)), list(group)))
    failed = sum(record["failed"] for record in result["records"])
    if failed:
        console.print(f"note  {failed} requests failed; they are not in the latencies")


def seeds_together(records: Sequence[Record]) -> list[list[Record]]:
    """Records of one case, which follow each other, side by side."""
    return [list(group) for _, group in groupby(records, key=lambda record: [record[name] for name in _CASE])]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half the range)."""
    return sum(values) / len(values), (max(values) - min(values)) / 2


def _table(title: str, cases: list[list[Record]]) -> Table:
    count, seeds = cases[0][0]["requests"], len(cases[0])
    heads = ("predictor", "placement", "load", "rate /s", "policy")
    table = Table(
        *heads,
        *(name for name, _ in _COLUMNS),
        title=f"{title}: {count} requests, {seeds} seeds, mean ± half the range",
    )
    for column in table.columns[2:4] + table.columns[5:]:
        column.justify = "right"
    for records in cases:
        first = records[0]
        load = "-" if first["load"] is None else f"{first['load']:g}"
        figures = [_shown(*spread([record[key] for record in records])) for _, key in _COLUMNS]
        rate = f"{first['requests_per_second']:.2f}"
        table.add_row(first["predictor"], first["placement"], load, rate, first["policy"], *figures)
    return table


def _shown(mean: float, half_range: float) -> str:
    digits = 0 if abs(mean) >= 1000 else 1 if abs(mean) >= 100 else 2
    return f"{mean:,.{digits}f} ± {half_range:,.{digits}f}"


def print_saturation(result: dict[str, Any], console: Console) -> None:
    """Requests and tokens per second at saturation, and against the first placement."""
    table = Table("workload", "format", "cluster", "policy", "placement", "requests/s", "tokens/s", "against the first")
    for column in table.columns[5:]:
        column.justify = "right"
    for record in result["records"]:
        names = [str(record[name]) for name in ("workload", "kv_format", "cluster", "policy", "placement")]
        change = f"{record['of_the_first'] - 1:+.1%}"
        table.add_row(*names, f"{record['requests_per_second']:.2f}", f"{record['tokens_per_second']:,.0f}", change)
    console.print(table)
