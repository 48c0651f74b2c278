"""Keeps a set of child processes alive: starts them, reports and restarts what dies, stops them stage by stage.

One thread starts, watches and stops all children, because a child on a leash dies with the thread that started it.
It knows nothing of Packhorse's components, of ports or of health (packhorse/launcher.py does).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from packhorse.child import Child, Report
from packhorse.errors import PackhorseError

MAX_BACK_OFF_SECONDS = 30.0
_WATCH_SECONDS = 0.05
_STEADY_SECONDS = 60.0  # a child that ran this long starts again with the first back-off


class ChildError(PackhorseError):
    """A child process ended while it was needed."""

    code = "child_died"


@dataclass(frozen=True)
class Spec:
    """What to run. `argv` gets the number of earlier starts; children of a lower `stage` are stopped first."""

    name: str
    argv: Callable[[int], Sequence[str]]
    env: Mapping[str, str]
    stage: int = 0


@dataclass
class _Slot:
    """One spec's child over its restarts."""

    spec: Spec
    child: Child | None = None
    starts: int = 0
    failures: int = 0
    started_at: float = 0.0
    restart_at: float | None = None


@dataclass
class Supervisor:
    """`start`, then `check` until everything is up, then `settle`: from there on a death is reported, not raised.

    `report(name, line)` gets the children's output and, under the name "packhorse", the supervisor's own lines.
    """

    specs: Sequence[Spec]
    report: Report
    restart: bool = True
    stop_seconds: float = 10.0
    back_off_seconds: float = 0.5
    children: dict[str, Child] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)  # names that died for good (restart is off)

    def __post_init__(self) -> None:
        self._slots = [_Slot(spec) for spec in self.specs]
        self._settled = threading.Event()
        self._stopping = threading.Event()
        self._begun = threading.Event()
        self._failure: ChildError | None = None
        self._judging = threading.Lock()  # a death is raised or reported: never neither
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._begun.wait()
        self.check()

    def check(self) -> None:
        """Raises ChildError, with the child's last lines, when one died before `settle`."""
        if self._failure:
            raise self._failure

    def settle(self) -> None:
        with self._judging:
            self.check()
            self._settled.set()

    def stop(self) -> None:
        """Stops every child, stage by stage; kills what does not end in `stop_seconds`. Idempotent."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to the child called `name`, as a fault test does. Raises KeyError for an unknown name."""
        self.children[name].signal(number)

    def _run(self) -> None:
        try:
            for slot in self._slots:
                self._spawn(slot)
            self._begun.set()
            while not self._stopping.wait(_WATCH_SECONDS):
                for slot in self._slots:
                    self._watch(slot)
        except OSError as error:  # no more processes or files
            self._failure = ChildError(f"cannot start a process: {error}")
        finally:
            self._begun.set()
            self._stop_all()

    def _spawn(self, slot: _Slot) -> None:
        slot.child = Child(slot.spec.name, slot.spec.argv(slot.starts), slot.spec.env, self.report)
        slot.starts += 1
        slot.started_at = time.monotonic()
        slot.restart_at = None
        self.children[slot.spec.name] = slot.child

    def _watch(self, slot: _Slot) -> None:
        if slot.restart_at is not None and time.monotonic() >= slot.restart_at:
            self._spawn(slot)
        elif slot.restart_at is None and slot.child and not slot.child.alive:
            self._died(slot, slot.child)

    def _failed_to_start(self, child: Child) -> bool:
        with self._judging:
            if self._settled.is_set():
                return False
            said = "\n".join(f"  {line}" for line in child.last_lines()) or "  (it said nothing)"
            self._failure = self._failure or ChildError(f"{child.name} {child.ending} while starting:\n{said}")
            return True

    def _died(self, slot: _Slot, child: Child) -> None:
        child.close()
        if self._failed_to_start(child):
            slot.child = None
        elif self.restart:
            slot.failures = 0 if time.monotonic() - slot.started_at > _STEADY_SECONDS else slot.failures
            wait = min(self.back_off_seconds * 2**slot.failures, MAX_BACK_OFF_SECONDS)
            slot.failures += 1
            slot.restart_at = time.monotonic() + wait
            self.report("packhorse", f"LOST {child.name}: it {child.ending}; starting it again in {wait:g} s")
        else:
            slot.child = None
            self.lost.append(child.name)
            self.report("packhorse", f"LOST {child.name}: it {child.ending}; it stays down (--no-restart)")

    def _stop_all(self) -> None:
        for stage in sorted({slot.spec.stage for slot in self._slots}):
            group = [slot.child for slot in self._slots if slot.spec.stage == stage and slot.child]
            for child in group:
                child.signal(signal.SIGTERM)  # once: a second signal would cut its draining short
            deadline = time.monotonic() + self.stop_seconds
            for child in group:
                if not child.finish(max(0.0, deadline - time.monotonic())):
                    self.report("packhorse", f"{child.name} did not stop in {self.stop_seconds:g} s and was killed")
