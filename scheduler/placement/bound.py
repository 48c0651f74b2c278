"""Round robin by arrival: each job is bound to the next pair by turn when it comes, and waits for that pair however full it is.

So do load balancers that forward every request at once and keep no queue of their own; `RoundRobin` chooses when a job starts, among the
workers that have room then. Where workers are unlike the slow ones' queues grow while the fast ones stand idle. A yardstick.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from weakref import WeakKeyDictionary, WeakValueDictionary

from scheduler.cost import CostModel
from scheduler.jobs import JobState, TrackedJob
from scheduler.placement.base import Pair, Placement
from scheduler.workers import Worker
from transport.messages import Role


class BoundRoundRobin(Placement):
    """Who waits for a decode worker's pages goes before those that came later to it. A job whose worker is lost is bound anew."""

    name = "bound-round-robin"
    binds = True

    def __init__(self, cost: CostModel | None = None) -> None:
        super().__init__(cost)
        self._ids: dict[Role, list[str]] = {"prefill": [], "decode": []}  # sorted
        self._last: dict[Role, str] = {"prefill": "", "decode": ""}
        self._bound: WeakKeyDictionary[TrackedJob, Pair] = WeakKeyDictionary()
        self._first: WeakValueDictionary[str, TrackedJob] = (
            WeakValueDictionary()
        )  # who waits for a decode worker's pages

    def _pair(self, job: TrackedJob) -> Pair | None:
        pair = self._bound.get(job)
        if pair is None or self._is_gone(pair.prefill) or (pair.decode is not None and self._is_gone(pair.decode)):
            pair = self._bind(job)
            if pair is None:
                return None
        if (pair.decode is None or self._has_turn(job, pair.decode)) and pair.prefill.has_room_for(job):
            return pair
        self.waiting = True
        return None

    def _is_gone(self, worker: Worker) -> bool:
        assert self._workers is not None
        return self._workers.get(worker.worker_id) is not worker

    def _bind(self, job: TrackedJob) -> Pair | None:
        """To the next of each role; None where a role has none that could ever hold the job."""
        prefill, decode = self._next(job, "prefill"), self._next(job, "decode") if job.needs_decode else None
        if prefill is None or (job.needs_decode and decode is None):
            return None
        pair = self._bound[job] = Pair(prefill, decode)
        self._last["prefill"] = prefill.worker_id
        if decode is not None:
            self._last["decode"] = decode.worker_id
        return pair

    def _next(self, job: TrackedJob, role: Role) -> Worker | None:
        assert self._workers is not None
        ids = self._ids[role]
        start = bisect_right(ids, self._last[role])
        for worker_id in ids[start:] + ids[:start]:
            worker = self._workers.get(worker_id)
            if worker is not None and worker.could_have_room(*worker.needs(job)):
                return worker
        return None

    def _has_turn(self, job: TrackedJob, decode: Worker) -> bool:
        """Whether it has room there, and nobody who came before it waits for some."""
        first = self._first.get(decode.worker_id)
        if first is not None and first is not job and first.state is JobState.QUEUED:
            return False
        if decode.has_room_for(job):
            self._first.pop(decode.worker_id, None)
            return True
        self._first[decode.worker_id] = job
        return False

    # ---- who is there

    def _sort_in(self, worker: Worker) -> None:
        ids = self._ids[worker.info.role]
        at = bisect_left(ids, worker.worker_id)
        if ids[at : at + 1] != [worker.worker_id]:
            ids.insert(at, worker.worker_id)

    def _left(self, worker_id: str) -> None:
        self._first.pop(worker_id, None)
        for ids in self._ids.values():
            at = bisect_left(ids, worker_id)
            if ids[at : at + 1] == [worker_id]:
                del ids[at]
