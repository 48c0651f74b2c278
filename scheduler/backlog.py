"""How long a job would wait in the queue: the work before it, over the rate at which the cluster has been taking work.

Work has three kinds, each with the cluster's capacity for it: seconds of prefill, steps times pages and steps times places of decoding (a
job holds its pages and its place for as many steps as it will make). The kind that takes longest decides. Units are the cost model's and
the forecasts'; what these are wrong by cancels, since the rate is measured in the same units: work placed per second while jobs waited.
Until jobs have waited for LEAST_SECONDS in all nothing is predicted. Fluid approximation, ours.
"""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.cost import CostModel
from scheduler.jobs import TrackedJob
from scheduler.policies.base import JobCost
from scheduler.workers import Workers

HALF_LIFE_SECONDS = 20.0  # of what was measured; the choice is between noise and lag
LEAST_SECONDS = 2.0
REFRESH_SECONDS = 1.0
_TYPICAL_PROMPT = 1024
Work = tuple[float, float, float]
_NONE: Work = (0.0, 0.0, 0.0)


class Backlog:
    """`placed` and `seen` are told of all that leaves the queue; times are seconds on one clock."""

    def __init__(self, workers: Workers, cost: CostModel, typical: JobCost) -> None:
        self._workers, self._cost, self._typical = workers, cost, typical
        self._work, self._seconds = _NONE, 0.0  # placed while jobs waited, and how long they did; both fade
        self._waiting, self._last = False, 0.0
        self._capacity, self._capacity_at = _NONE, float("-inf")

    # ---- what happens

    def placed(self, job: TrackedJob) -> None:
        """The job leaves the queue for its workers."""
        if self._waiting:
            self._work = _sum((self._work, self.work(job)))

    def seen(self, now: float, waiting: bool) -> None:
        """An event is over; `waiting`: it leaves jobs in the queue."""
        if self._waiting:
            passed = now - self._last
            keep = 0.5 ** (passed / HALF_LIFE_SECONDS)
            a, b, c = self._work
            self._work, self._seconds = (a * keep, b * keep, c * keep), self._seconds * keep + passed
        self._waiting, self._last = waiting, now

    # ---- what is predicted

    def seconds(self, jobs: Iterable[TrackedJob], now: float) -> float | None:
        """Until these would all be placed; None while that is not known."""
        rate = self._longest(self._work, now) / self._seconds if self._seconds >= LEAST_SECONDS else 0.0
        return self._longest(_sum(map(self.work, jobs)), now) / rate if rate > 0 else None

    def work(self, job: TrackedJob) -> Work:
        steps = job.forecast.mean - 1.0 if job.needs_decode else 0.0
        return self._typical.prefill_seconds(job.prompt_tokens), steps * job.pages, steps

    def _longest(self, work: Work, now: float) -> float:
        """Seconds of the whole cluster, by the cost model."""
        if now - self._capacity_at >= REFRESH_SECONDS:
            self._capacity, self._capacity_at = self._measure(), now
        return max((done / able for done, able in zip(work, self._capacity, strict=True) if able > 0), default=0.0)

    def _measure(self) -> Work:
        """Of each kind what all workers do in a second, with the batches that they have now; that of an idle one is one short job.

        Context may be all that a worker's steps are found to cost, so none of it would be a step in no time.
        """
        prefills = pages = places = 0.0
        typical = self._typical.prefill_seconds(_TYPICAL_PROMPT)
        for worker in self._workers:
            cost, info = self._cost.worker(worker.worker_id), worker.info
            if info.role == "prefill":
                prefills += typical / cost.prefill_seconds(_TYPICAL_PROMPT)
            else:
                steps = 1.0 / cost.step_seconds(max(1, worker.context_tokens), max(1, len(worker.jobs)))
                pages, places = pages + steps * info.capacity_pages, places + steps * info.max_jobs
        return prefills, pages, places


def _sum(works: Iterable[Work]) -> Work:
    a = b = c = 0.0
    for x, y, z in works:
        a, b, c = a + x, b + y, c + z
    return a, b, c
