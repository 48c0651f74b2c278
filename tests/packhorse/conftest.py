"""The console script in a process of its own, with none of the caller's PACKHORSE_ variables."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def packhorse() -> Run:
    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("PACKHORSE_")}
        command = [sys.executable, "-P", "-m", "packhorse", *arguments]
        return subprocess.run(command, env=env | variables, capture_output=True, text=True, timeout=110, check=False)

    return run
