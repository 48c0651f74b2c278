"""One component as a process: phases, signals, exit statuses, errors in one line."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from packhorse.errors import ConfigError
from packhorse.run import error_line
from tests.waiting import PATIENCE_SECONDS

PROGRAM = """
import asyncio, sys, types
from packhorse import run
from packhorse.config import ProcessConfig
from packhorse.errors import ConfigError, UnavailableError

class Fake:
    address = "tcp://127.0.0.1:1"
    def __init__(self, config): print("made", flush=True)
    async def start(self): {start}
    async def stop(self): {stop}
    {more}

sys.modules["fake"] = types.ModuleType("fake")
sys.modules["fake"].Fake = Fake
run.CLASSES["fake"] = ("fake", "Fake")
run.STOP_SECONDS = {stop_seconds}
sys.exit(run.run("fake", ProcessConfig()))
"""


@contextmanager
def fake(
    start: str = "pass", stop: str = "print('freed', flush=True)", more: str = "", stop_seconds: int = 60
) -> Iterator[subprocess.Popen[str]]:
    code = textwrap.dedent(PROGRAM).format(start=start, stop=stop, more=more, stop_seconds=stop_seconds)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Standard error up to the line with `text`."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} never came: {seen}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_cleanly(number: signal.Signals) -> None:
    with fake() as process:
        line = read_until(process, "ready")
        assert line.rstrip().endswith("fake packhorse.run: ready at tcp://127.0.0.1:1")
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (0, "made\nfreed\n")
    assert "stopped" in err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_kills(number: signal.Signals, status: int) -> None:
    with fake(stop="await asyncio.sleep(600)") as process:
        read_until(process, "ready")
        process.send_signal(number)
        read_until(process, "draining")
        process.send_signal(number)
        assert process.wait(PATIENCE_SECONDS) == status


def test_a_signal_before_it_is_up_ends_the_start() -> None:
    with fake(start="print('starting', file=sys.stderr, flush=True); await asyncio.sleep(600)") as process:
        read_until(process, "starting")
        process.terminate()
        out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (0, "made\n")


def test_a_signal_while_a_thread_loads_does_not_wait_for_it() -> None:
    load = "import time; print('loading', file=sys.stderr, flush=True); await asyncio.to_thread(time.sleep, 100)"
    with fake(start=load) as process:
        read_until(process, "loading")
        process.terminate()
        out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (0, "made\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_import_ends_it(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import sys, time; print('importing', file=sys.stderr, flush=True); time.sleep(100)"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + PROGRAM.replace(
        '("fake", "Fake")', '("slow", "Fake")'
    )
    with subprocess.Popen(
        [sys.executable, "-c", code.format(start="pass", stop="pass", more="", stop_seconds=60)],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        read_until(process, "importing")
        process.send_signal(number)
        process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        ("ConfigError('--port=1: taken')", 2, "packhorse: error: --port=1: taken\n"),
        ("UnavailableError('no scheduler')", 1, "packhorse: error: no scheduler\n"),
        (
            "OSError(98, 'Address already\\n in use')",
            1,
            "packhorse: error: OSError: [Errno 98] Address already in use\n",
        ),
    ],
)
def test_a_failed_start_is_one_line(raised: str, status: int, line: str) -> None:
    with fake(start=f"raise {raised}") as process:
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out, err) == (status, "made\n", line)


def test_a_component_that_ends_by_itself_is_stopped_and_its_error_reported() -> None:
    with fake(more="async def wait(self): raise UnavailableError('the engine died')") as process:
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (1, "made\nfreed\n")
    assert err.endswith("packhorse: error: the engine died\n")


def test_a_stop_that_hangs_ends_with_status_1() -> None:
    with fake(stop="await asyncio.sleep(600)", stop_seconds=2) as process:
        read_until(process, "ready")
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert "did not stop in 2 seconds" in err


def test_grouped_errors_show_the_first() -> None:
    group = BaseExceptionGroup("many", [ConfigError("a\nb"), ValueError("c")])
    assert error_line(group) == "packhorse: error: a b"
    assert error_line(ValueError()) == "packhorse: error: ValueError: no message"
