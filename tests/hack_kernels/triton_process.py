"""Triton's interpreter in a process of its own: it must be chosen before triton is imported, and then holds for the whole process."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 110
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed on this platform")


def run_interpreted(module: str, *arguments: str) -> str:
    """Runs `python -m tests.hack_kernels.<module>` with kernels interpreted on the CPU; its output. Fails the test if it fails."""
    return run_module(module, *arguments, TRITON_INTERPRET="1")


def run_module(module: str, *arguments: str, **variables: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-m", f"tests.hack_kernels.{module}", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
