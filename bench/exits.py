"""How benchmark commands end: their exit statuses, and bad configuration as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from packhorse.errors import ConfigError

EXIT_ALL_FAILED, EXIT_BAD_CONFIG, EXIT_INTERRUPTED = 1, 2, 130


@contextmanager
def config_errors() -> Iterator[None]:
    """A ConfigError becomes one line on standard error and exit status 2."""
    try:
        yield
    except ConfigError as error:
        typer.echo(f"error: {error.message}", err=True)
        raise typer.Exit(EXIT_BAD_CONFIG) from error
