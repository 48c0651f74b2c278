"""Shortest remaining processing time (Schrage 1968): the bound on what ordering by length can give.

It is as good as its forecasts: run it with the `oracle` predictor. Preempts at every step; nothing bounds a long job's wait.
"""

from __future__ import annotations

from scheduler.jobs import TrackedJob
from scheduler.policies.estimate import remaining_seconds
from scheduler.policies.queue import Rank
from scheduler.policies.ranked import RankedPolicy


class SrptOracle(RankedPolicy):
    name = "srpt-oracle"
    preempts = True

    def queue_rank(self, job: TrackedJob) -> Rank:
        return (remaining_seconds(job, self.cost),)
