"""The predictors' figures for people. This file computes nothing."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def print_predictors(result: dict[str, Any], console: Console) -> None:
    """A table for each part that was run, then what it was run on."""
    for part, show in (("held_out", _held_out), ("online", _online), ("refine", _refine), ("speed", _speed)):
        if part in result:
            console.print(show(result[part]))
    machine = result["machine"]
    console.print(
        f"{result['jobs']} prompts, lengths {result['column']} (again: {result['again']}), tokens by {result['tokens']}, "
        f"{result['folds']} of 5 folds, seed {result['seed']}; {machine['cpu']}, {result['seconds']:.0f} s",
        soft_wrap=True,
        highlight=False,
    )


def _held_out(rows: list[dict[str, Any]]) -> Table:
    table = _table("prompts held out; and prompts seen before, answered anew", "predictor", "MAE", "within 25 %", "tau",
                   "range", "in p10-p90", "again: MAE", "again: tau")  # fmt: skip
    for row in rows:
        again = row["seen_before"]
        table.add_row(row["predictor"], f"{row['mae']:.1f}", f"{row['within_25']:.1%}", f"{row['tau']:.3f}", f"{row['tau_range']:.3f}",
                      f"{row['cover_p10_p90']:.1%}", f"{again['mae']:.1f}", f"{again['tau']:.3f}")  # fmt: skip
    return table


def _online(rows: list[dict[str, Any]]) -> Table:
    windows = [f"{w['from']}-{w['to']}" for w in rows[0]["windows"]] if rows else []
    table = _table("online from cold, jobs in order of arrival: tau (MAE)", "predictor", *windows)
    for row in rows:
        table.add_row(row["predictor"], *(f"{w['tau']:.3f} ({w['mae']:.1f})" for w in row["windows"]))
    return table


def _refine(rows: list[dict[str, Any]]) -> Table:
    names = ("first", "conditioned", "refined", "survival")
    table = _table("MAE of the tokens that remain", "generated", "jobs", *names)
    for row in rows:
        table.add_row(str(row["generated"]), str(row["jobs"]), *(f"{row[name]:.1f}" for name in names))
    return table


def _speed(row: dict[str, Any]) -> Table:
    table = _table(
        "milliseconds of `learned`", "prompts stored", "p50", "p99", "processor p50", "processor p99", "to learn a job"
    )
    table.add_row(f"{row['stored']:,}", *(f"{row[key]:.2f}" for key in
                  ("p50_ms", "p99_ms", "p50_processor_ms", "p99_processor_ms", "learn_ms")))  # fmt: skip
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(*columns, title=title, title_justify="left")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    return table
