"""The placement without predictions: outstanding prompt tokens, and the share of pages that is reserved."""

from __future__ import annotations

from scheduler.jobs import TrackedJob
from scheduler.placement.base import Pair, Placement
from scheduler.workers import Worker


class LeastLoaded(Placement):
    """Prefill: fewest outstanding prompt tokens. Decode: least share of pages reserved, then fewest jobs. Ties by worker id."""

    name = "least-loaded"

    def _pair(self, job: TrackedJob) -> Pair | None:
        prefill = self._groups["prefill"].first(job)
        if prefill is None or not job.needs_decode:
            return Pair(prefill, None) if prefill is not None else None
        decode = self._groups["decode"].first(job)
        return Pair(prefill, decode) if decode is not None else None

    def _prefill_key(self, worker: Worker) -> tuple[float, ...]:
        return worker.prompt_tokens, len(worker.jobs)

    def _decode_key(self, worker: Worker) -> tuple[float, ...]:
        return worker.reserved_pages / max(1, worker.info.capacity_pages), len(worker.jobs) / worker.info.max_jobs
