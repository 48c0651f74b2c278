"""One child process: on a leash, in a session of its own, its output read line by line.

It knows nothing of what the process does, nor of when to restart it (packhorse/supervisor.py does).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Report = Callable[[str, str], None]  # (process name, one line without its end)
KEPT_LINES = 200
_LEASH = str(Path(__file__).with_name("leash.py"))
_READER_SECONDS = 2.0


class Child:
    """A running command. It dies with the thread that made it, so that thread must outlive it.

    `report` gets each line of the command's standard output and error, on a thread of its own.
    """

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], report: Report) -> None:
        self.name = name
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._report = report
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", _LEASH, str(os.getpid()), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"{name}-output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        code = self._process.poll()
        if code is None:
            return "still runs"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    def last_lines(self, count: int = 12) -> list[str]:
        return list(self.lines)[-count:]

    def signal(self, number: signal.Signals) -> None:
        """Signals the whole session; does nothing once the process has been waited for."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.killpg(self.pid, number)

    def wait(self, timeout_seconds: float) -> bool:
        """Whether it ended within the time."""
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def finish(self, timeout_seconds: float) -> bool:
        """Waits for it to end, then kills it. False when it had to be killed."""
        ended = self.wait(timeout_seconds)
        if not ended:
            self.signal(signal.SIGKILL)
            self._process.wait(_READER_SECONDS)
        self.close()
        return ended

    def close(self) -> None:
        """Lets go of an ended process: its last lines are read, its pipe is closed."""
        self._reader.join(_READER_SECONDS)
        if self._process.stdout and not self._reader.is_alive():
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = raw.decode("utf-8", errors="replace").rstrip()
            self.lines.append(line)
            self._report(self.name, line)
