"""A queue of jobs by rank, in which nobody waits beyond a bound because of it: overdue jobs come first, in order of arrival."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator

from scheduler.jobs import TrackedJob

Rank = tuple[float, ...]


class RankQueue:
    """`add` and `remove` take O(log n) amortized, `head` O(1). Ranks are fixed while a job is queued; ties go by arrival.

    A job that comes back, since it was dropped, arrives anew: it waits from when it was stopped, behind those that were there.
    """

    def __init__(self, max_wait_seconds: float = math.inf) -> None:
        self.max_wait_seconds = max_wait_seconds
        self._jobs: OrderedDict[str, tuple[int, TrackedJob]] = (
            OrderedDict()
        )  # by arrival; the number tells entries apart
        self._heap: list[tuple[Rank, int, str]] = []  # void where `_jobs` has no such number
        self._count = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: TrackedJob, rank: Rank) -> None:
        """`rank` must hold no NaN; the smallest comes first."""
        self._count += 1
        self._jobs[job.job_id] = (self._count, job)
        heapq.heappush(self._heap, (rank, self._count, job.job_id))

    def remove(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)
        if len(self._heap) > 2 * len(self._jobs) + 64:
            self._heap = [entry for entry in self._heap if self._is_valid(entry)]
            heapq.heapify(self._heap)

    def rerank(self, rank: Callable[[TrackedJob], Rank]) -> None:
        """Gives every job its rank anew, in O(n)."""
        self._heap = [(rank(job), count, job_id) for job_id, (count, job) in self._jobs.items()]
        heapq.heapify(self._heap)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def head(self, now: float) -> TrackedJob | None:
        """The oldest job where it has waited for `max_wait_seconds`, else the one of the smallest rank."""
        return self.overdue(now) or self.best()

    def overdue(self, now: float) -> TrackedJob | None:
        """The oldest job, where it has waited for `max_wait_seconds`."""
        if not self._jobs:
            return None
        _, oldest = next(iter(self._jobs.values()))
        return oldest if self._is_overdue(oldest, now) else None

    def best(self) -> TrackedJob | None:
        """The job of the smallest rank."""
        while self._heap and not self._is_valid(self._heap[0]):
            heapq.heappop(self._heap)
        return self._jobs[self._heap[0][2]][1] if self._heap else None

    def __iter__(self) -> Iterator[TrackedJob]:
        """All jobs, in order of arrival."""
        return (job for _, job in self._jobs.values())

    def in_order(self, now: float) -> Iterator[TrackedJob]:
        """All jobs as `head` would name them, one after the other, if nothing came and time stood still."""
        overdue = set()
        for job in self:
            if not self._is_overdue(job, now):
                break
            overdue.add(job.job_id)
            yield job
        yield from (job for job in self.by_rank() if job.job_id not in overdue)

    def by_rank(self) -> Iterator[TrackedJob]:
        """All jobs, the smallest rank first; each takes O(log n) when it is taken. The queue must not change meanwhile."""
        frontier = [(self._heap[0], 0)] if self._heap else []  # of the heap, seen as a tree: the rest is behind it
        while frontier:
            entry, place = heapq.heappop(frontier)
            if self._is_valid(entry):
                yield self._jobs[entry[2]][1]
            for child in range(2 * place + 1, min(2 * place + 3, len(self._heap))):
                heapq.heappush(frontier, (self._heap[child], child))

    def ahead(self, rank: Rank, now: float) -> Iterator[TrackedJob]:
        """Those that go before a job of that rank which came now."""
        for rank_of, count, job_id in self._heap:
            if not self._is_valid((rank_of, count, job_id)):
                continue
            _, job = self._jobs[job_id]
            if rank_of <= rank or self._is_overdue(job, now):
                yield job

    def _is_overdue(self, job: TrackedJob, now: float) -> bool:
        """By how long it has been waiting: one that was dropped has been in service before."""
        return job.progress.waiting_seconds(now) >= self.max_wait_seconds

    def _is_valid(self, entry: tuple[Rank, int, str]) -> bool:
        return self._jobs.get(entry[2], (0,))[0] == entry[1]
