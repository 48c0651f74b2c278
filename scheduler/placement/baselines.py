"""The usual load balancers, to compare with: round robin, least outstanding requests, the better of two drawn at random."""

from __future__ import annotations

import random

from scheduler.cost import CostModel
from scheduler.jobs import TrackedJob
from scheduler.placement.base import Pair, Placement
from scheduler.workers import Worker
from transport.messages import Role

_TRIES = 8


class _EachRole(Placement):
    """Both sides of the pair are chosen in the same way, each for itself."""

    def _one(self, role: Role, job: TrackedJob) -> Worker | None:
        raise NotImplementedError

    def _pair(self, job: TrackedJob) -> Pair | None:
        prefill = self._one("prefill", job)
        if prefill is None or not job.needs_decode:
            return Pair(prefill, None) if prefill is not None else None
        decode = self._one("decode", job)
        return Pair(prefill, decode) if decode is not None else None

    def _prefill_key(self, worker: Worker) -> tuple[float, ...]:
        return ()

    def _decode_key(self, worker: Worker) -> tuple[float, ...]:
        return ()

    def _group(self, worker: Worker) -> tuple[int, ...]:
        return ()


class RoundRobin(_EachRole):
    """The next worker by id after the last, that has room."""

    name = "round-robin"

    def __init__(self, cost: CostModel | None = None) -> None:
        super().__init__(cost)
        self._last: dict[Role, str] = {"prefill": "", "decode": ""}

    def _pair(self, job: TrackedJob) -> Pair | None:
        pair = super()._pair(job)
        if pair is not None:
            self._last["prefill"] = pair.prefill.worker_id
            if pair.decode is not None:
                self._last["decode"] = pair.decode.worker_id
        return pair

    def _one(self, role: Role, job: TrackedJob) -> Worker | None:
        return self._groups[role].after(self._last[role], job)


class LeastOutstanding(_EachRole):
    """The worker with the fewest jobs; ties by worker id."""

    name = "least-outstanding"

    def _one(self, role: Role, job: TrackedJob) -> Worker | None:
        return self._groups[role].first(job)

    def _prefill_key(self, worker: Worker) -> tuple[float, ...]:
        return (len(worker.jobs),)

    _decode_key = _prefill_key


class PowerOfTwo(_EachRole):
    """Of two workers drawn at random the one with fewer jobs (Mitzenmacher 2001). The draws repeat with the seed."""

    name = "power-of-two"

    def __init__(self, cost: CostModel | None = None, seed: int = 0) -> None:
        super().__init__(cost)
        self._random = random.Random(seed)

    def _one(self, role: Role, job: TrackedJob) -> Worker | None:
        groups = self._groups[role]
        (entries,) = list(groups) or [[]]
        drawn: list[Worker] = []
        for _ in range(_TRIES if entries else 0):
            worker = self._random.choice(entries)[2]
            if worker.has_room_for(job):
                drawn.append(worker)
            if len(drawn) == 2:
                break
        return min(drawn, key=lambda worker: (len(worker.jobs), worker.worker_id)) if drawn else groups.roomiest(job)
