"""TRAIL (arXiv 2410.01035): shortest predicted remaining length first, with limited preemption.

With r the initial prediction and a the tokens generated, a job may be preempted only while a < C * r. Past the cutoff the paper
ranks it before all others until it is done. That holds here for a job that waits past the cutoff, too, or was dropped there (memory
pressure can stop it): the released code sorts such a one to the very end of the queue, where it starves.
C is 0.8, the best of the paper's; its 2026 release found 0 (no preemption) best on another engine: tune it. Predictions are refined
by whoever owns the forecasts (`refine`), the cutoff keeps the first. The paper has no starvation rule for the queue; neither has this.
"""

from __future__ import annotations

from scheduler.jobs import TrackedJob
from scheduler.policies.base import JobCost
from scheduler.policies.estimate import MEDIAN, remaining_tokens
from scheduler.policies.queue import Rank
from scheduler.policies.ranked import RankedPolicy

CUTOFF = 0.8


class Trail(RankedPolicy):
    name = "trail"
    preempts = True

    def __init__(self, cost: JobCost | None = None, *, cutoff: float = CUTOFF) -> None:
        super().__init__(cost)
        self.cutoff = cutoff
        self._initial: dict[str, float] = {}  # predicted tokens when the job was first seen

    def add(self, job: TrackedJob, now: float) -> None:
        self._initial_tokens(job)
        super().add(job, now)

    def queue_rank(self, job: TrackedJob) -> Rank:
        if job.progress.generated >= self.cutoff * self._initial_tokens(job):
            return (0.0, 0.0 if job.progress.running else 1.0)
        return (1.0, remaining_tokens(job))

    def _initial_tokens(self, job: TrackedJob) -> float:
        return self._initial.setdefault(job.job_id, job.forecast.quantile(MEDIAN))

    def forget(self, job_id: str) -> None:
        super().forget(job_id)
        self._initial.pop(job_id, None)
