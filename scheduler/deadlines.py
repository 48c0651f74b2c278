"""When each job is overdue: one time per job that may be set anew, and the earliest of them. Knows nothing of jobs but their ids."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

_FEW = 64


class Deadlines:
    """All operations take O(log n) amortized; what is void is thrown away once it is half of what is kept."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # void where `_times` says otherwise
        self._most = _FEW  # entries, until the void ones are thrown away

    def __len__(self) -> int:
        """Jobs that have one."""
        return len(self._times)

    def set(self, job_id: str, time: float) -> None:
        """The job is overdue at `time`, and not at what was set before."""
        self._times[job_id] = time
        heapq.heappush(self._heap, (time, job_id))
        if len(self._heap) > self._most:
            self._heap = [(at, job) for job, at in self._times.items()]
            heapq.heapify(self._heap)
            self._most = 2 * len(self._heap) + _FEW

    def forget(self, job_id: str) -> None:
        """The job has none any more; an unknown one changes nothing."""
        self._times.pop(job_id, None)

    @property
    def first(self) -> float | None:
        """The earliest; None where no job has one."""
        self._drop_void()
        return self._heap[0][0] if self._heap else None

    def overdue(self, now: float) -> Iterator[str]:
        """Takes out the jobs that are overdue, in order of time; others may be set or forgotten meanwhile."""
        while (first := self.first) is not None and first <= now:
            _, job_id = heapq.heappop(self._heap)
            del self._times[job_id]
            yield job_id

    def _drop_void(self) -> None:
        while self._heap and self._times.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
