"""Where tables go: as wide as the terminal, or, into a file or a pipe, wide enough for every column."""

from __future__ import annotations

import sys

from rich.console import Console

WIDTH = 180  # where there is no terminal


def table_console() -> Console:
    """Standard output."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)
