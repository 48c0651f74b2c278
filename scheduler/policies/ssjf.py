"""Speculative shortest job first (arXiv 2404.08509): by predicted output length, without preemption.

The paper names no ageing; its public simulator serves the longest-waiting job first once that has waited for 100 s, which is
the default here. The simulator's second rule (10 times the job's own duration) is left out: under load it makes every short
job urgent.
"""

from __future__ import annotations

from scheduler.jobs import TrackedJob
from scheduler.policies.base import JobCost
from scheduler.policies.estimate import remaining_tokens
from scheduler.policies.queue import Rank
from scheduler.policies.ranked import RankedPolicy

MAX_WAIT_SECONDS = 100.0


class Ssjf(RankedPolicy):
    name = "ssjf"

    def __init__(self, cost: JobCost | None = None, *, max_wait_seconds: float = MAX_WAIT_SECONDS) -> None:
        super().__init__(cost, max_wait_seconds=max_wait_seconds)

    def queue_rank(self, job: TrackedJob) -> Rank:
        return (remaining_tokens(job),)
