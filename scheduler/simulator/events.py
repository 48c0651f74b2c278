"""The event queue: what happens next, and when. Knows nothing of what the events do."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Action = Callable[[float], None]


class EventQueue:
    """Actions by time; those of one time run in the order in which they were put in, so that a run repeats exactly.

    An event cannot be taken out: its owner ignores it when it comes late (see `Timer`).
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Action]] = []
        self._count = 0

    def at(self, time: float, action: Action) -> None:
        """Calls `action(time)` then; a time that has passed means now."""
        self._count += 1
        heapq.heappush(self._heap, (max(time, self.now), self._count, action))

    def step(self) -> bool:
        """Runs the next event; False when there is none."""
        if not self._heap:
            return False
        self.now, _, action = heapq.heappop(self._heap)
        action(self.now)
        return True

    @property
    def next_time(self) -> float | None:
        return self._heap[0][0] if self._heap else None

    @property
    def added(self) -> int:
        """Events that were ever put in."""
        return self._count

    def __len__(self) -> int:
        return len(self._heap)


class Timer:
    """One event that may be moved or stopped: of the times that were set, only the newest one counts."""

    def __init__(self, events: EventQueue, action: Action) -> None:
        self._events, self._action = events, action
        self.time: float | None = None

    def set(self, time: float | None) -> None:
        """Fires at `time` and not before; None: not at all."""
        if time == self.time:
            return
        self.time = time
        if time is not None:
            self._events.at(time, self._fire)

    def _fire(self, now: float) -> None:
        if self.time is not None and self.time <= now:
            self.time = None
            self._action(now)
