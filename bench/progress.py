"""Progress on standard error: a bar on a terminal, else a plain line now and then."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PLAIN_SECONDS = 5.0


class ProgressView(Protocol):
    """Counts finished units; a context manager."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def advance(self, note: str = "") -> None: ...


class BarView:
    """A rich progress bar."""

    def __init__(self, title: str, total: int, console: Console) -> None:
        columns = (
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task(title, total=total, note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, note: str = "") -> None:
        self._progress.update(self._task, advance=1, note=note)


class PlainView:
    """A line at most every PLAIN_SECONDS, and at the end."""

    def __init__(self, title: str, total: int, console: Console) -> None:
        self._title, self._total, self._console = title, total, console
        self._count = 0
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def advance(self, note: str = "") -> None:
        self._count += 1
        if self._count == self._total or time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            self._console.print(f"{self._title} {self._count}/{self._total} {note}".rstrip(), soft_wrap=True)


def progress(title: str, total: int) -> ProgressView:
    """The view that suits standard error."""
    console = Console(stderr=True)
    return BarView(title, total, console) if console.is_terminal else PlainView(title, total, console)
