"""ALISE (arXiv 2410.23537): least estimated remaining execution time first, preemptive, with ageing and swap by estimated waiting time.

    T = s * T0 (prefill, while it is to come) + n * (alpha * s + beta),  n: output tokens that are still expected

from the paper's execution-time model, with the cost model's coefficients. The estimate follows progress, and is made anew when
a job outlives its forecast. The paper's several queues by ranges of execution time are one queue by the time itself here.
Its abstract of ageing and of Algorithm 2 (swap by EWT) is followed; the constants were not to be found, so these are ours:
AGEING (seconds of priority per second of waiting), the median as the estimate, and the estimated waiting time

    EWT(i) = min( sum of T over the jobs before i / jobs that run,  time until ageing lifts i above the last that runs )
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.jobs import TrackedJob
from scheduler.policies.base import JobCost, Room, RunPlan
from scheduler.policies.estimate import remaining_seconds
from scheduler.policies.queue import Rank
from scheduler.policies.ranked import RankedPolicy

AGEING = 0.1


class Alise(RankedPolicy):
    name = "alise"
    preempts = True

    def __init__(self, cost: JobCost | None = None, *, ageing: float = AGEING) -> None:
        super().__init__(cost)
        self.ageing = ageing

    def queue_rank(self, job: TrackedJob) -> Rank:
        """All that wait age alike, so their order is that of T + ageing * the time since which they wait."""
        return (remaining_seconds(job, self.cost) + self.ageing * job.progress.since,)

    def run_rank(self, job: TrackedJob, now: float) -> Rank:
        return (remaining_seconds(job, self.cost) - self.ageing * job.progress.waiting_seconds(now),)

    def plan(self, jobs: Sequence[TrackedJob], room: Room, now: float) -> RunPlan:
        plan = super().plan(jobs, room, now)
        waits = self.waiting_seconds(plan, now)
        return RunPlan(plan.run, tuple(sorted(plan.wait, key=lambda job: waits[job.job_id])))

    def waiting_seconds(self, plan: RunPlan, now: float) -> dict[str, float]:
        """EWT of the jobs that wait, by id."""
        before = sum(remaining_seconds(job, self.cost) for job in plan.run)
        last = max((self.run_rank(job, now)[0] for job in plan.run), default=0.0)
        waits = {}
        for job in plan.wait:
            lifted = max(0.0, self.run_rank(job, now)[0] - last) / self.ageing if self.ageing else float("inf")
            waits[job.job_id] = min(before / max(1, len(plan.run)), lifted)
            before += remaining_seconds(job, self.cost)
        return waits
