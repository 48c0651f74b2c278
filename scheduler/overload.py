"""Who is turned away when more comes than the cluster can do: those who would wait too long, lower classes first, each told when to retry.

A job is shed when it is submitted, not when its deadline has passed: it is refused where its predicted wait in the queue exceeds the
queue's deadline, or its predicted token 1 the TTFT that was set or that its request allows. Queued jobs of a lower class that would go
before it are shed in its stead, the newest of the lowest class first, until it fits; likewise one of a lower class where the queue is
full. Running jobs are never shed, nor those that are queued again after they ran.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from packhorse.config import SchedulerConfig
from packhorse.errors import OverloadedError
from scheduler.backlog import Backlog
from scheduler.jobs import TrackedJob
from scheduler.policies import Policy
from scheduler.policies.base import JobCost

MARGIN = 0.8  # of what is allowed: the rest is for errors of the prediction; ours
LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS = 1.0, 600.0


class Overload:
    """`policy` holds the queue. Changes nothing: the caller ends those who are shed."""

    def __init__(self, config: SchedulerConfig, policy: Policy, backlog: Backlog, typical: JobCost) -> None:
        self._config, self._policy, self._backlog, self._typical = config, policy, backlog, typical

    def shed_for(self, job: TrackedJob, now: float) -> list[tuple[TrackedJob, OverloadedError]]:
        """Those to shed so that `job` may be queued, each with its error. Raises OverloadedError: it is to be shed itself."""
        if not len(self._policy):
            return []
        full = len(self._policy) >= self._config.max_queue
        below = (
            _worst_first(queued for queued in self._policy.queued() if queued.priority < job.priority) if full else []
        )
        if full and not below:
            raise self._full(now)
        shed = [(below[0], self._full(now))] if full else []
        return (
            [*shed, *self._shed_for_time(job, {queued.job_id for queued, _ in shed}, now)]
            if self._config.shed
            else shed
        )

    def _shed_for_time(self, job: TrackedJob, gone: set[str], now: float) -> list[tuple[TrackedJob, OverloadedError]]:
        most = self._most_seconds(job)
        of_all = self._backlog.seconds(self._policy.queued(), now)
        if of_all is None or of_all <= most:
            return []  # nothing is known, or whatever the order is
        ahead = [queued for queued in self._policy.ahead(job, now) if queued.job_id not in gone]
        seconds = self._backlog.seconds(ahead, now) or 0.0
        if seconds <= most:
            return []
        late = self._late(seconds, most)
        shed: list[TrackedJob] = []
        for victim in _worst_first(queued for queued in ahead if queued.priority < job.priority):
            shed.append(victim)
            seconds -= self._backlog.seconds([victim], now) or 0.0
            if seconds <= most:
                return [(each, late) for each in shed]
        raise late

    def _most_seconds(self, job: TrackedJob) -> float:
        """That the job may be predicted to wait."""
        most = MARGIN * self._config.queue_seconds
        wishes = (self._config.shed_ttft_seconds, job.job.max_ttft_seconds)
        ttft = min((seconds for seconds in wishes if seconds is not None), default=None)
        return most if ttft is None else min(most, MARGIN * ttft - self._typical.prefill_seconds(job.prompt_tokens))

    def _late(self, seconds: float, most: float) -> OverloadedError:
        retry = _bounded(seconds - most)
        text = (
            f"the job would wait for about {seconds:.1f} s, {max(0.0, most):.1f} s are allowed; retry in {retry:.0f} s"
        )
        return OverloadedError(text, retry_after_seconds=retry)

    def _full(self, now: float) -> OverloadedError:
        """The next place is free when the head is placed, an even share of the wait of all."""
        queued = len(self._policy)
        retry = _bounded((self._backlog.seconds(self._policy.queued(), now) or 0.0) / queued)
        limit = self._config.max_queue
        return OverloadedError(f"{queued} jobs are queued; the limit is {limit}", retry_after_seconds=retry)


def _bounded(seconds: float) -> float:
    return math.ceil(min(max(seconds, LEAST_RETRY_SECONDS), MOST_RETRY_SECONDS))


def _worst_first(jobs: Iterable[TrackedJob]) -> list[TrackedJob]:
    """The lowest class first, and in it the newest; without those that have begun."""
    newest_first = [job for job in jobs if job.replay is None][::-1]  # for ties
    return sorted(newest_first, key=lambda job: (job.priority, -job.submitted_at))
