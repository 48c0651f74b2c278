"""Which pair of workers a job goes to. A placement sees the registry's counts and changes nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from scheduler.jobs import TrackedJob
from scheduler.workers import Worker, Workers


@dataclass(frozen=True)
class Pair:
    """`decode` is None for a job that cannot outlive token 1."""

    prefill: Worker
    decode: Worker | None


class Placement(ABC):
    name: ClassVar[str]

    @abstractmethod
    def choose(self, job: TrackedJob, workers: Workers) -> Pair | None:
        """A pair with room for `job` now (`Worker.has_room_for`), or None when there is none.

        The same workers with the same counts give the same pair, whatever their order of registration.
        """


class LeastLoaded(Placement):
    """Prefill: fewest outstanding prompt tokens. Decode: least share of pages reserved, then fewest jobs. Ties by worker id."""

    name = "least-loaded"

    def choose(self, job: TrackedJob, workers: Workers) -> Pair | None:
        prefill = min(
            (worker for worker in workers.of_role("prefill") if worker.has_room_for(job)),
            key=_prefill_load,
            default=None,
        )
        if prefill is None:
            return None
        if not job.needs_decode:
            return Pair(prefill, None)
        decode = min(
            (worker for worker in workers.of_role("decode") if worker.has_room_for(job)), key=_decode_load, default=None
        )
        return Pair(prefill, decode) if decode is not None else None


def _prefill_load(worker: Worker) -> tuple[int, int, str]:
    return worker.prompt_tokens, len(worker.jobs), worker.worker_id


def _decode_load(worker: Worker) -> tuple[float, float, str]:
    pages, jobs = worker.reserved_pages / max(1, worker.info.capacity_pages), len(worker.jobs) / worker.info.max_jobs
    return pages, jobs, worker.worker_id


PLACEMENTS: dict[str, type[Placement]] = {placement.name: placement for placement in (LeastLoaded,)}
