"""The quality table for people. This file computes nothing."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def print_quality(result: dict[str, Any], console: Console) -> None:
    """The table, what it was measured on, and which format it supports."""
    table = Table("pages", "bytes/token", "of bf16", "perplexity", "KL (nats)", "top-1", "recall")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in result["formats"]:
        table.add_row(
            row["format"],
            f"{row['bytes_per_token']:,.0f}",
            f"{row['bytes_share']:.1%}",
            f"{row['perplexity']:.2f}",
            f"{row['mean_kl']:.5f}",
            f"{row['top1']:.4f}",
            f"{row['recalled']}/{row['lookups']}" if row["lookups"] else "-",
        )
    console.print(table)
    machine = result["machine"]
    console.print(
        f"{result['model']['name']} in {result['config']['dtype'].removeprefix('torch.')}, {result['tokens']} tokens in "
        f"{result['rows']} rows; {machine['cpu']}, {machine['threads']} threads; {result['seconds']:.0f} s",
        soft_wrap=True,
        highlight=False,
    )
    console.print(
        "Bytes are those of pages with their metadata, against 16-bit raw pages; the residual is not counted.",
        soft_wrap=True,
    )
    if result["recommended"]:
        console.print(
            f"Fewest bytes with recall within 1 of raw and KL below 0.01: {result['recommended']}", soft_wrap=True
        )
