"""Learning to rank (arXiv 2408.15792): by the predictor's ranking score, given once at arrival; running jobs are sorted too.

The paper counts steps: a job that was not scheduled for S = 200 of them goes first for a period of 10, and any step that it
is scheduled sets its count back. Here waiting is counted in seconds, as that many of the cost model's steps over a batch of
TYPICAL_BATCH sequences of TYPICAL_CONTEXT tokens (ours).
"""

from __future__ import annotations

from scheduler.jobs import TrackedJob
from scheduler.policies.base import JobCost
from scheduler.policies.queue import Rank
from scheduler.policies.ranked import RankedPolicy

STARVATION_STEPS = 200
PERIOD_STEPS = 10
TYPICAL_BATCH = 16
TYPICAL_CONTEXT = 1024


class Ltr(RankedPolicy):
    name = "ltr"
    preempts = True

    def __init__(
        self,
        cost: JobCost | None = None,
        *,
        starvation_steps: int = STARVATION_STEPS,
        period_steps: int = PERIOD_STEPS,
    ) -> None:
        super().__init__(cost)
        step_seconds = self.cost.step_seconds(TYPICAL_BATCH * TYPICAL_CONTEXT, TYPICAL_BATCH)
        self.max_wait_seconds = self._queue.max_wait_seconds = starvation_steps * step_seconds
        self.promoted_seconds = period_steps * step_seconds

    def queue_rank(self, job: TrackedJob) -> Rank:
        return (-job.forecast.score,)
