"""Tables for people and JSON for programs, of a load test's summary. This file computes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from packhorse.errors import ConfigError

_LATENCIES = (("TTFT", "ttft_seconds"), ("TPOT", "tpot_seconds"), ("ITL", "itl_seconds"), ("JCT", "jct_seconds"))


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Latencies as a table, then counts, throughput and what failed."""
    console.print(_latency_table(summary))
    for line in _lines(summary):
        console.print(line, soft_wrap=True, highlight=False)


def _latency_table(summary: dict[str, Any]) -> Table:
    table = Table("", "mean", "p50", "p90", "p99", "max", title="milliseconds")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, key in _LATENCIES:
        values = summary[key] or {}
        table.add_row(name, *(_milliseconds(values.get(column)) for column in ("mean", "p50", "p90", "p99", "max")))
    return table


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.1f}"


def _lines(summary: dict[str, Any]) -> list[str]:
    s = summary
    lines = [
        f"requests     {s['completed']} completed, {s['failed']} failed, {s['interrupted']} interrupted, "
        f"{s['not_sent']} not sent, of {s['planned']}, in {s['duration_seconds']:.2f} s",
        f"throughput   {s['requests_per_second']:.2f} requests/s, {s['output_tokens_per_second']:.1f} output tokens/s, "
        f"{s['total_tokens_per_second']:.1f} tokens/s in all",
    ]
    if s["goodput_requests_per_second"] is not None:
        limits = ", ".join(f"{name} {value:g} s" for name, value in s["limits"].items() if value is not None)
        lines.append(f"goodput      {s['goodput_requests_per_second']:.2f} requests/s within {limits}")
    if s["kv_transfer"]:
        kv = s["kv_transfer"]
        lines.append(
            f"KV shipped   {kv['bytes_shipped']:,} bytes, {kv['shipped_share']:.1%} of the {kv['raw_bytes']:,} "
            f"of raw 16-bit pages ({kv['requests']} requests)"
        )
        if kv["bytes_held"]:
            whole = kv["bytes_shipped"] + kv["bytes_held"]
            lines.append(
                f"KV held      {kv['bytes_held']:,} bytes, {kv['bytes_held'] / whole:.1%} of what the prompts have, were not sent"
            )
    if s["requests_with_counted_tokens"]:
        lines.append(
            f"note         {s['requests_with_counted_tokens']} requests came without usage: their chunks count as tokens"
        )
    for cause, count in s["failures_by_cause"].items():
        lines.append(f"failed       {count} x {cause}: {s['first_error_by_cause'][cause]}")
    return lines


def check_writable(option: str, path: Path) -> None:
    """Raises ConfigError naming `option` where the file's folder is missing, or it is one, before anything is measured."""
    if not path.parent.is_dir():
        raise ConfigError(f"{option}={path}: no such folder", param=option)
    if path.is_dir():
        raise ConfigError(f"{option}={path}: is a folder, not a file", param=option)


def write_json(path: Path, result: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Writes strict JSON (no NaN); raises ConfigError where the file cannot be written."""
    try:
        path.write_text(json.dumps(_finite(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"json={path}: {error.strerror}", param="json") from error


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value) if math.isinf(value) else None
    return value
