"""FastServe (arXiv 2305.05920, NSDI '26): a multi-level feedback queue that jobs join at the level of their prefill. Needs no prediction.

Level p has a quantum of base * growth^p seconds of service. A job skips to the first level whose quantum covers its prefill;
service beyond the level's quantum demotes it by one level and sets the consumed service back to 0; waiting for `max_wait_seconds`
promotes it to the top. Jobs of a higher level go first, those of one level in the order in which they came to it. A job keeps its level
where it is queued again, since its pages were dropped.

Base 10 ms, growth 2 and 3 s are the released code's (the paper: the shortest step, 2, and 300 ms by SLO). Ours: a promoted job keeps
the top for PROMOTED_SECONDS at least, since a quantum of 10 ms would be swapped out before it has paid for being swapped in.
Service counts from token 1 on. The paper swaps by ENST, the time until a job is next served: the plan's waiting order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from scheduler.jobs import TrackedJob
from scheduler.policies.base import JobCost, Policy, Room, RunPlan, fill
from scheduler.policies.queue import Rank, RankQueue

BASE_SECONDS = 0.010
GROWTH = 2.0
MAX_WAIT_SECONDS = 3.0
PROMOTED_SECONDS = 0.25


@dataclass(slots=True)
class Place:
    """Where a job is in the feedback queue. `served_before` is its service in all when it came to this level."""

    level: int
    since: float
    served_before: float = 0.0
    promoted: bool = False


class FastServe(Policy):
    name = "fastserve"
    preempts = True

    def __init__(
        self,
        cost: JobCost | None = None,
        *,
        base_seconds: float = BASE_SECONDS,
        growth: float = GROWTH,
        max_wait_seconds: float = MAX_WAIT_SECONDS,
    ) -> None:
        super().__init__(cost)
        self.base_seconds, self.growth, self.max_wait_seconds = base_seconds, growth, max_wait_seconds
        self._queue = RankQueue(max_wait_seconds)
        self._places: dict[str, Place] = {}

    def quantum_seconds(self, level: int) -> float:
        return self.base_seconds * self.growth**level

    def join_level(self, prefill_seconds: float) -> int:
        """The first level whose quantum covers a prefill of that long."""
        return max(0, math.ceil(math.log(max(prefill_seconds, 1e-9) / self.base_seconds, self.growth) - 1e-9))

    # ---- the queue

    def add(self, job: TrackedJob, now: float) -> None:
        self._queue.add(job, self._queue_rank(job))

    def _queue_rank(self, job: TrackedJob) -> Rank:
        known = self._places.get(job.job_id)
        return (float(known.level if known is not None else self._first_level(job)),)

    def _first_level(self, job: TrackedJob) -> int:
        return self.join_level(self.cost.prefill_seconds(job.prompt_tokens))

    def remove(self, job_id: str) -> None:
        self._queue.remove(job_id)

    def head(self, now: float) -> TrackedJob | None:
        return self._queue.head(now)

    def __len__(self) -> int:
        return len(self._queue)

    def queued(self) -> Iterable[TrackedJob]:
        return self._queue

    def upcoming(self, now: float) -> Iterator[TrackedJob]:
        return self._queue.in_order(now)

    def ahead(self, job: TrackedJob, now: float) -> Iterable[TrackedJob]:
        return self._queue.ahead(self._queue_rank(job), now)

    # ---- a decode worker

    def plan(self, jobs: Sequence[TrackedJob], room: Room, now: float) -> RunPlan:
        places = {job.job_id: self._place(job, now) for job in jobs}

        def order(job: TrackedJob) -> tuple[int, float, float, str]:
            place = places[job.job_id]
            return place.level, place.since, job.submitted_at, job.job_id

        return fill(sorted(jobs, key=order), room)

    def _place(self, job: TrackedJob, now: float) -> Place:
        """Its place now, after the demotions or the promotion that are due."""
        place = self._places.get(job.job_id)
        if place is None:
            place = Place(self._first_level(job), job.submitted_at, job.progress.prefill_seconds or 0.0)
            self._places[job.job_id] = place
        served = job.progress.service_seconds(now)
        if job.progress.waiting_seconds(now) >= self.max_wait_seconds and now - place.since >= self.max_wait_seconds:
            place.level, place.since, place.served_before, place.promoted = 0, now, served, True
        while served - place.served_before >= self._allowed_seconds(place):
            place.served_before += self._allowed_seconds(place)
            place.level, place.since, place.promoted = place.level + 1, now, False
        return place

    def _allowed_seconds(self, place: Place) -> float:
        quantum = self.quantum_seconds(place.level)
        return max(quantum, PROMOTED_SECONDS) if place.promoted else quantum

    def forget(self, job_id: str) -> None:
        self._places.pop(job_id, None)
