"""The table of `bench kernels` for people: times, ratios, bounds, and what is absent and why. Measures nothing."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

COLUMNS = ("", "median ms", "p20-p80", "GB/s", "bound", "error", "/ours")
CACHES = {
    "cold": "cold: before each call a buffer of three last-level caches is read (CPU) or written (GPU)",
    "warm": "warm: each timed call follows the same call",
}
RATIOS = ("sdpa_f32", "matmul_bf16", "fused_dequant")
PLACE = ("op", "format", "context", "batch")


def print_kernels(result: dict[str, Any], console: Console) -> None:
    """All records, the ratios that the targets are about, absences, variants, and what it was measured on."""
    console.print(_table(result))
    if any(record["impl"] == "ours" and record["op"] != "close_pages" for record in result["records"]):
        console.print(_ratio_table(result["records"]))
    for line in _lines(result):
        console.print(line, soft_wrap=True, highlight=False)


def _table(result: dict[str, Any]) -> Table:
    table = _table_of(*COLUMNS)
    records = result["records"]
    ours = {_place(r): r["median_seconds"] for r in records if r["impl"] == "ours"}
    absent = [x for x in result["absent"] if x["op"] != "close_pages"]
    for place in dict.fromkeys(_place(r) for r in (*records, *absent)):
        table.add_section()
        table.add_row(f"[bold]{_title(place)}")
        for record in (r for r in records if _place(r) == place):
            table.add_row(f"  {record['impl']}", *_figures(record, ours.get(place)))
        for missing in (x for x in absent if _place(x) == place):
            table.add_row(f"  {missing['impl']}", "absent")
    return table


def _figures(record: dict[str, Any], ours: float | None) -> tuple[str, ...]:
    median = record["median_seconds"]
    return (
        f"{median * 1e3:,.3f}",
        f"{_short(record['p20_seconds'] * 1e3)}-{_short(record['p80_seconds'] * 1e3)}",
        f"{record['bytes_read'] / median / 1e9:,.1f}",
        f"{record['roofline_share']:.0%}",
        f"{record['max_error']:.1e}",
        f"{median / ours:,.2f}" if ours else "-",
    )


def _short(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def ratios(records: list[dict[str, Any]]) -> list[tuple[tuple[Any, ...], dict[str, float]]]:
    """For every attention case with `ours`: how many times longer each of RATIOS takes, where it was measured."""
    medians: dict[tuple[Any, ...], dict[str, float]] = {}
    for record in records:
        if record["op"] != "close_pages":
            medians.setdefault(_place(record), {})[record["impl"]] = record["median_seconds"]
    return [
        (place, {name: times[name] / times["ours"] for name in RATIOS if name in times})
        for place, times in medians.items()
        if "ours" in times
    ]


def _ratio_table(records: list[dict[str, Any]]) -> Table:
    table = _table_of("", *(f"{name}/ours" for name in RATIOS))
    for place, values in ratios(records):
        table.add_row(_title(place), *(f"{values[name]:,.2f}" if name in values else "-" for name in RATIOS))
    return table


def _lines(result: dict[str, Any]) -> list[str]:
    machine, rates = result["machine"], result["multiply_adds_per_second"]
    reasons = {(x["impl"], x["op"], x["reason"]) for x in result["absent"]}
    variants = {(x["impl"], x["op"], x["note"]) for x in result["notes"]}
    shown = ", ".join(f"{name} {rate / 1e9:,.0f}" if rate else f"{name} unknown" for name, rate in rates.items())
    return [
        *(f"absent       {impl} of {op}: {reason}" for impl, op, reason in sorted(reasons)),
        *(f"variant      {impl} of {op}: {note}" for impl, op, note in sorted(variants)),
        f"back end     {result['backend']['name']}: {result['backend']['reason']}",
        f"bounds       copy {result['copy_bytes_per_second'] / 1e9:,.1f} GB/s (read and written); billions of multiply-adds per "
        f"second: {shown}; int8 by {result['int8_source']}",
        f"measured on  {machine.get('gpu') or machine['cpu']}, {machine['threads']} threads, load average {machine['load_average']}, "
        f"torch {machine['torch']}, commit {machine['commit']}, seed {result['seed']}, {machine['time']}",
        f"caches       {CACHES[result['caches']]}",
    ]


def _table_of(*columns: str) -> Table:
    table = Table(*columns, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for column in table.columns:
        column.no_wrap = True
        column.justify = "right" if column.header else "left"
    return table


def _title(place: tuple[Any, ...]) -> str:
    op, fmt, context, batch = place
    return f"{op} {fmt} {context}x{batch}"


def _place(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[key] for key in PLACE)
