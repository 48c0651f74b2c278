"""First come, first served: strictly, nothing overtakes. The yardstick of the other policies."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from scheduler.jobs import TrackedJob
from scheduler.policies.base import JobCost, Policy, Room, RunPlan, fill


class Fcfs(Policy):
    """Jobs in order of arrival; all operations on the queue take constant time. On a decode worker running jobs stay."""

    name = "fcfs"

    def __init__(self, cost: JobCost | None = None) -> None:
        super().__init__(cost)
        self._jobs: OrderedDict[str, TrackedJob] = OrderedDict()

    def add(self, job: TrackedJob, now: float) -> None:
        self._jobs[job.job_id] = job

    def remove(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)

    def head(self, now: float) -> TrackedJob | None:
        return next(iter(self._jobs.values()), None)

    def __len__(self) -> int:
        return len(self._jobs)

    def queued(self) -> Iterable[TrackedJob]:
        return self._jobs.values()

    def upcoming(self, now: float) -> Iterator[TrackedJob]:
        return iter(self._jobs.values())

    def ahead(self, job: TrackedJob, now: float) -> Iterable[TrackedJob]:
        return self._jobs.values()

    def plan(self, jobs: Sequence[TrackedJob], room: Room, now: float) -> RunPlan:
        return fill(sorted(jobs, key=_arrival), room, strict=True)


def _arrival(job: TrackedJob) -> tuple[bool, float, str]:
    return not job.progress.running, job.submitted_at, job.job_id
