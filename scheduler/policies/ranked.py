"""What the policies that rank jobs share: a queue by rank, plans by rank, and promotion of jobs that have waited too long."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence

from scheduler.jobs import TrackedJob
from scheduler.policies.base import JobCost, Policy, Room, RunPlan, fill
from scheduler.policies.queue import Rank, RankQueue


class RankedPolicy(Policy):
    """Jobs of a smaller rank go first; ties by arrival.

    A job that waits for `max_wait_seconds` comes before all others: in the queue by arrival; on a decode worker it is promoted, and stays
    so until it has run for `promoted_seconds` without a break, so that promotion cannot make it swap back and forth.
    Where the policy does not preempt, running jobs come before all that wait.
    """

    def __init__(
        self,
        cost: JobCost | None = None,
        *,
        max_wait_seconds: float = math.inf,
        promoted_seconds: float = math.inf,
    ) -> None:
        super().__init__(cost)
        self.max_wait_seconds, self.promoted_seconds = max_wait_seconds, promoted_seconds
        self._queue = RankQueue(max_wait_seconds)
        self._promoted: set[str] = set()

    @abstractmethod
    def queue_rank(self, job: TrackedJob) -> Rank:
        """Of a job in the queue; fixed while it is there, so ageing is to be written as a term in `job.submitted_at`."""

    def run_rank(self, job: TrackedJob, now: float) -> Rank:
        """Of a job on a decode worker."""
        return self.queue_rank(job)

    # ---- the queue

    def add(self, job: TrackedJob, now: float) -> None:
        self._queue.add(job, self.queue_rank(job))

    def remove(self, job_id: str) -> None:
        self._queue.remove(job_id)

    def head(self, now: float) -> TrackedJob | None:
        return self._queue.head(now)

    def __len__(self) -> int:
        return len(self._queue)

    def queued(self) -> Iterable[TrackedJob]:
        return self._queue

    def upcoming(self, now: float) -> Iterator[TrackedJob]:
        return self._queue.in_order(now)

    def ahead(self, job: TrackedJob, now: float) -> Iterable[TrackedJob]:
        return self._queue.ahead(self.queue_rank(job), now)

    # ---- a decode worker

    def plan(self, jobs: Sequence[TrackedJob], room: Room, now: float) -> RunPlan:
        return fill(sorted(jobs, key=lambda job: self._key(job, now)), room)

    def _key(self, job: TrackedJob, now: float) -> tuple[int, Rank, float, str]:
        if self._is_promoted(job, now):
            return 0, (), job.submitted_at, job.job_id
        stays = job.progress.running and not self.preempts
        return 1 if stays else 2, self.run_rank(job, now), job.submitted_at, job.job_id

    def _is_promoted(self, job: TrackedJob, now: float) -> bool:
        if job.progress.running:
            if now - job.progress.since >= self.promoted_seconds:
                self._promoted.discard(job.job_id)
        elif job.progress.waiting_seconds(now) >= self.max_wait_seconds:
            self._promoted.add(job.job_id)
        return job.job_id in self._promoted

    def forget(self, job_id: str) -> None:
        self._promoted.discard(job_id)
