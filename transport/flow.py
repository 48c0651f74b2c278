"""Flow control of one page link's sending side: byte credits, and which stream's frame goes next.

It knows nothing of links or of what is in a frame.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from .messages import Model


class Credits:
    """How many payload bytes may be under way, and how fast they arrive.

    A frame larger than the whole window goes when nothing else is under way, so it cannot wait for ever.
    """

    def __init__(self, credit_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.available_bytes = credit_bytes
        self.under_way_bytes = 0
        self.delivered_bytes = 0
        self._clock = clock
        self._busy_seconds = 0.0  # with something under way, before `_busy_since`
        self._busy_since = 0.0

    @property
    def busy_seconds(self) -> float:
        """Seconds with something under way, since the start."""
        return self._busy_seconds + (self._clock() - self._busy_since if self.under_way_bytes else 0.0)

    def allow(self, num_bytes: int) -> bool:
        return num_bytes <= self.available_bytes or not self.under_way_bytes

    def take(self, num_bytes: int) -> None:
        if num_bytes and not self.under_way_bytes:
            self._busy_since = self._clock()
        self.available_bytes -= num_bytes
        self.under_way_bytes += num_bytes

    def grant(self, num_bytes: int) -> None:
        """The receiver consumed `num_bytes`, or allows more than before."""
        busy = self.busy_seconds
        consumed = min(num_bytes, self.under_way_bytes)
        self.available_bytes += num_bytes
        self.under_way_bytes -= consumed
        self.delivered_bytes += consumed
        self._busy_seconds, self._busy_since = busy, self._clock()


@dataclass
class Outgoing:
    """A frame in the queue: `message` is complete but for the checksum of its payload."""

    message: Model
    payload: memoryview = field(default_factory=lambda: memoryview(b""))


class FrameQueue:
    """Frames of one stream, in order. `priority` is higher first; `sequence` breaks ties, the older stream first."""

    def __init__(self, priority: int, sequence: int) -> None:
        self.frames: deque[Outgoing] = deque()
        self.rank = (-priority, sequence)

    def __lt__(self, other: FrameQueue) -> bool:
        return self.rank < other.rank


class Turns:
    """Chooses, anew for every frame, the first stream by rank that has one."""

    def __init__(self) -> None:
        self._waiting: list[FrameQueue] = []  # a heap; a queue is in it once or, if it was emptied, lazily removed
        self._members: set[FrameQueue] = set()

    def add(self, queue: FrameQueue) -> None:
        """`queue` has frames (again)."""
        if queue not in self._members:
            self._members.add(queue)
            heapq.heappush(self._waiting, queue)

    def first(self) -> FrameQueue | None:
        while self._waiting and not self._waiting[0].frames:
            self._members.remove(heapq.heappop(self._waiting))
        return self._waiting[0] if self._waiting else None
