"""What `bench proof` prints: each part's table of cases, then its targets. This file computes nothing."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bench.sim_proof import Part
from bench.sim_report import print_scheduler


def print_part(part: Part, console: Console) -> None:
    console.rule(part.name)
    print_scheduler({"records": part.records}, console)
    if not part.checks:
        return
    table = Table("", "measured", "target", "")
    table.columns[1].justify = table.columns[2].justify = "right"
    for check in part.checks:
        verdict = "met" if check.met else "missed"
        table.add_row(check.what, f"{check.measured:.3f}", f"{check.sign} {check.limit:.3g}", verdict)
    console.print(table)
