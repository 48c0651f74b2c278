"""First come, first served: strictly, nothing overtakes. The yardstick of the other policies."""

from __future__ import annotations

from scheduler.jobs import TrackedJob
from scheduler.policies.base import Policy


class Fcfs(Policy):
    """Jobs in order of arrival; all operations take constant time."""

    name = "fcfs"

    def __init__(self) -> None:
        self._jobs: dict[str, TrackedJob] = {}

    def add(self, job: TrackedJob, now: float) -> None:
        self._jobs[job.job_id] = job

    def remove(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)

    def head(self, now: float) -> TrackedJob | None:
        return next(iter(self._jobs.values()), None)

    def __len__(self) -> int:
        return len(self._jobs)
