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

    A placement serves one registry. Equal histories give equal pairs, whatever the order of registration.
    """

    name: ClassVar[str]

    def __init__(self, cost: CostModel | None = None) -> None:
        self.cost = cost or CostModel()
        self._workers: Workers | None = None
        self._changed: set[str] = set()
        self._groups: dict[Role, Groups] = {"prefill": Groups(), "decode": Groups()}

    def choose(self, job: TrackedJob, workers: Workers) -> Pair | None:
        """A pair with room for `job` now (`Worker.has_room_for`), or None when there is none."""
        self._refresh(workers)
        return self._pair(job)

    def has_prefill_for(self, job: TrackedJob) -> bool:
        """Whether only the decode side was missing, when `choose` last found no pair."""
        return self._groups["prefill"].roomiest(job) is not None

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

    def _refresh(self, workers: Workers) -> None:
        if workers is not self._workers:
            self._workers, self._changed = workers, workers.watch()
            self._groups = {"prefill": Groups(), "decode": Groups()}
        while self._changed:
            worker_id = self._changed.pop()
            worker = workers.get(worker_id)
            for role, groups in self._groups.items():
                if worker is None or worker.info.role != role or worker.device_jobs >= worker.info.max_jobs:
                    groups.discard(worker_id)
                else:
                    key = self._prefill_key(worker) if role == "prefill" else self._decode_key(worker)
                    groups.put(self._group(worker), key, worker)
