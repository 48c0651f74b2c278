"""A thread that steps an engine: commands from the event loop run between steps, never during one.

Both engines compute on such a thread, so that a forward pass does not hold up heartbeats and sockets. It knows nothing of
what a step does.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from packhorse.errors import PackhorseError

log = logging.getLogger(__name__)


class StepThread:
    """Calls `step` again and again while it returns True, and sleeps until the next command once it returns False.

    `failed` gets any exception that `step` raises, on this thread; the engine is expected to fail what it holds and go on.
    """

    def __init__(self, name: str, step: Callable[[], bool], failed: Callable[[Exception], None]) -> None:
        self._step = step
        self._failed = failed
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, command: Callable[[], None]) -> None:
        """Runs `command` on the thread before the next step."""
        self._commands.put(command)

    def stop(self, timeout_seconds: float) -> None:
        """Ends the thread after the step under way. Raises PackhorseError when that takes longer than the timeout."""
        self._commands.put(None)
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            raise PackhorseError(f"{self._thread.name}: a step is still running after {timeout_seconds} s")

    def _run(self) -> None:
        busy = False
        while self._drain(wait=not busy):
            try:
                busy = self._step()
            except Exception as error:  # the thread's top loop: the engine fails its jobs and goes on
                log.exception("%s: a step failed", self._thread.name)
                self._failed(error)

    def _drain(self, *, wait: bool) -> bool:
        """Runs the commands that are there, after waiting for one if `wait`; False once told to stop."""
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            wait = False
