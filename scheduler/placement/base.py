"""Which pair of workers a job goes to. A placement sees the registry's counts and the cost model, and changes neither."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from scheduler.cost import CostModel
from scheduler.jobs import TrackedJob
from scheduler.placement.index import Groups
from scheduler.workers import Worker, Workers
from transport.messages import Role


@dataclass(frozen=True, slots=True)
class Pair:
    """`decode` is None for a job that cannot outlive token 1. `seconds` and `why` explain the choice, as far as it was predicted."""

    prefill: Worker
    decode: Worker | None
    seconds: float = 0.0
    why: str = ""


class Placement(ABC):
    """`choose` sees the workers through sorted groups that it brings up to date with what has changed since it was last asked.

    A placement serves one registry. Equal histories give equal pairs, whatever the order of registration. `now` and `queued` are those of
    the choice under way.
    """

    name: ClassVar[str]
    waits: ClassVar[bool] = False  # whether it may let a job wait though there is a pair with room
    binds: ClassVar[bool] = False  # whether each job waits for workers of its own, and holds up none that has others

    def __init__(self, cost: CostModel | None = None) -> None:
        self.cost = cost or CostModel()
        self._workers: Workers | None = None
        self._changed: set[str] = set()
        self._groups: dict[Role, Groups] = {"prefill": Groups(), "decode": Groups()}
        self._full: dict[Role, Groups] = {"prefill": Groups(), "decode": Groups()}  # all places taken; kept if `waits`
        self._roles: dict[str, Role] = {}  # as the workers are sorted in
        self.now, self.queued, self.waiting = 0.0, 1, False

    def choose(self, job: TrackedJob, workers: Workers, now: float = 0.0, queued: int = 1) -> Pair | None:
        """A pair with room for `job` now (`Worker.has_room_for`), or None: there is none, or the job is to wait for a better one.

        `queued` jobs, this one included, are to be placed. The same job is to be tried again when something has changed on a worker.
        """
        self.now, self.queued, self.waiting = now, queued, False
        self._refresh(workers)
        return self._pair(job)

    def has_prefill_for(self, job: TrackedJob) -> bool:
        """Whether only the decode side was missing, when `choose` last found no pair."""
        return not self.waiting and self._groups["prefill"].roomiest(job) is not None

    def observe(self, output_tokens: int) -> None:  # noqa: B027 - only some predict by it
        """A job ended by itself with that many tokens."""

    @abstractmethod
    def _pair(self, job: TrackedJob) -> Pair | None: ...

    def _prefill_key(self, worker: Worker) -> tuple[float, ...]:
        """The smaller, the rather it is taken; ties by worker id."""
        raise NotImplementedError

    def _decode_key(self, worker: Worker) -> tuple[float, ...]:
        raise NotImplementedError

    def _group(self, worker: Worker) -> tuple[int, ...]:
        """Workers of one group are looked at in the order of their keys; there should be few groups."""
        return worker.info.max_context_tokens, worker.info.capacity_pages

    def _left(self, worker_id: str) -> None:  # noqa: B027 - only some keep anything of a worker
        """The worker is gone."""

    def _refresh(self, workers: Workers) -> None:
        if workers is not self._workers:
            self._workers, self._changed = workers, workers.watch()
            self._groups = {"prefill": Groups(), "decode": Groups()}
            self._full = {"prefill": Groups(), "decode": Groups()}
            self._roles = {}
        changed = tuple(self._changed)
        self._changed.clear()  # `pop` would search the space of all that were ever in it for the few that are
        for worker_id in changed:
            worker = workers.get(worker_id)
            known = self._roles.get(worker_id)
            if known is not None and (worker is None or worker.info.role != known):
                self._take_out(worker_id, known)
            if worker is not None:
                self._roles[worker_id] = worker.info.role
                self._sort_in(worker)

    def _take_out(self, worker_id: str, role: Role) -> None:
        """No worker of this id has the role any more."""
        self._groups[role].discard(worker_id)
        self._full[role].discard(worker_id)
        del self._roles[worker_id]
        self._left(worker_id)

    def _sort_in(self, worker: Worker) -> None:
        info = worker.info
        key = self._prefill_key(worker) if info.role == "prefill" else self._decode_key(worker)
        goes, stays_out = self._groups[info.role], self._full[info.role]
        full = worker.device_jobs >= info.max_jobs
        if full:
            goes, stays_out = stays_out, goes
        stays_out.discard(worker.worker_id)
        if not full or self.waits:
            goes.put(self._group(worker), key, worker)
