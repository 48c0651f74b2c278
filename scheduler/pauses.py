"""Declared tool pauses: which jobs stand still, what becomes of their memory meanwhile, and when each goes on.

A job stops by itself on its decode worker, once it has generated as many tokens as it declared. What its pages do meanwhile the policy
says (LAMPS, arXiv 2410.18248): they stay, or move to host memory where there is room. `discard` counts as `swap` here: a job that is to
go on at a known time is not computed again. Knows nothing of messages: `call_back` sends them.
"""

from __future__ import annotations

from collections.abc import Callable

from scheduler.jobs import Swap, TrackedJob
from scheduler.policies import Policy
from scheduler.preemption import Preemption
from scheduler.workers import Worker


class Pauses:
    def __init__(self, policy: Policy, preemption: Preemption, call_back: Callable[[Worker, TrackedJob], None]) -> None:
        self._policy, self._preemption, self._call_back = policy, preemption, call_back
        self._paused: dict[str, tuple[float, Worker, TrackedJob]] = {}  # by job: the end of its pause

    def begin(self, worker: Worker, job: TrackedJob, now: float) -> None:
        """The worker says that the job has stopped. One that was dropped comes to its pause again: it waits for what is left of it."""
        if job.pause is not None and job.pause_until is None:
            job.pause_until = now + job.pause.seconds
        if job.pause_until is None or job.pause_until <= now:
            self._go_on(worker, job, now)
            return
        job.paused = True
        job.progress.wait(now)
        self._paused[job.job_id] = job.pause_until, worker, job
        self._give_back(worker, job)

    def decodes(self, job: TrackedJob) -> None:
        """Its prefill is known to be done. The decode worker's word of the pause may have come before that."""
        if job.job_id in self._paused:
            _, worker, _ = self._paused[job.job_id]
            self._give_back(worker, job)

    def _give_back(self, worker: Worker, job: TrackedJob) -> None:
        if self._policy.pause_action(job, worker.context_tokens - job.context_tokens) != "preserve":
            self._preemption.vacate(worker, job)

    def next_end(self) -> float | None:
        """When the next pause is over; None while nobody pauses."""
        return min((until for until, _, _ in self._paused.values()), default=None)

    def end_due(self, now: float) -> None:
        """Jobs whose pause is over run on."""
        for until, worker, job in list(self._paused.values()):
            if until <= now:
                del self._paused[job.job_id]
                self._go_on(worker, job, now)

    def _go_on(self, worker: Worker, job: TrackedJob, now: float) -> None:
        """At once, or one that has left the device or is about to, once the policy calls it back."""
        job.paused, job.pause = False, None
        if job.swap is Swap.IN:
            job.progress.run(now)
            self._call_back(worker, job)
        else:
            self._preemption.due.add(worker.worker_id)

    def gone(self, job_id: str) -> None:
        """The job holds nothing on its decode worker any more."""
        self._paused.pop(job_id, None)
