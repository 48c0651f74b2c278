"""Least predicted completion: the pair on which a job is expected to be done first, on workers and links of any speed.

    completion = queue of prefill + prefill + transfer over the pair's link + decode over the job's predicted life

    queue    the prefills that are outstanding on the worker, by its own coefficients
    decode   n steps of the batch with the job in it, plus what the job adds to each step of the jobs beside it, all that times
             1 + the share of the pool's pages that would be reserved

After the routing idea of arXiv 2504.15303 (compute and memory are separate capacities; route by predicted length on workers of
unlike speed), whose formulas were not to be found: the terms are ours. That a job is charged for slowing the others down keeps fast workers
from filling up until they are as slow as the slow ones; the share of pages steers towards memory when steps are alike.

Not all pairs are tried: within groups of workers of like size and speed the order by load is the order for any job, so
the NEAREST of each group stand for it, and of those the best BEST on both sides are paired.
"""

from __future__ import annotations

import math

from scheduler.jobs import TrackedJob
from scheduler.pages import num_pages
from scheduler.placement.base import Pair, Placement
from scheduler.workers import Worker
from transport.messages import KVLayout, Role

NEAREST = 2
TRIES = 8
BEST = 4
_CLASSES_PER_OCTAVE = 2
_TYPICAL_PROMPT = 1024
_TYPICAL_BATCH = 16


class PredictedCompletion(Placement):
    name = "predicted"

    def _pair(self, job: TrackedJob) -> Pair | None:
        prefills = [(self.prefill_seconds(job, worker), worker) for worker in self._near("prefill", job)]
        if not prefills:
            return None
        prefills.sort(key=_by_time)
        if not job.needs_decode:
            seconds, worker = prefills[0]
            return Pair(worker, None, seconds, f"queue and prefill {seconds:.3f} s")
        decodes = [(self.decode_seconds(job, worker), worker) for worker in self._near("decode", job)]
        if not decodes:
            return None
        decodes.sort(key=_by_time)
        return self._best_pair(job, prefills[:BEST], decodes[:BEST])

    def _best_pair(
        self, job: TrackedJob, prefills: list[tuple[float, Worker]], decodes: list[tuple[float, Worker]]
    ) -> Pair:
        size = payload_bytes(job, prefills[0][1].info.layout)
        best, chosen = math.inf, None
        for queue, prefill in prefills:
            for decode_seconds, decode in decodes:
                ship = self.cost.transfer_seconds(prefill.worker_id, decode.worker_id, size)
                if chosen is None or queue + ship + decode_seconds < best:
                    best, chosen = queue + ship + decode_seconds, (queue, prefill, ship, decode_seconds, decode)
        assert chosen is not None
        queue, prefill, ship, decode_seconds, decode = chosen
        why = f"queue and prefill {queue:.3f} s, transfer {ship:.3f} s, decode with its load on others {decode_seconds:.3f} s"
        return Pair(prefill, decode, best, why)

    def prefill_seconds(self, job: TrackedJob, worker: Worker) -> float:
        """What is outstanding on the worker, and the job."""
        return self._outstanding_seconds(worker) + self.cost.worker(worker.worker_id).prefill_seconds(job.prompt_tokens)

    def decode_seconds(self, job: TrackedJob, worker: Worker) -> float:
        """Of the job's predicted life beside what the worker holds, with what it costs the others."""
        cost, beside = self.cost.worker(worker.worker_id), len(worker.jobs)
        context = job.context_tokens
        step = cost.step_seconds(worker.context_tokens + context, beside + 1)
        slowed = step - cost.step_seconds(worker.context_tokens, beside)
        share = (worker.reserved_pages + job.pages) / max(1, worker.info.capacity_pages)
        return job.forecast.quantile(0.5) * (step + beside * slowed) * (1.0 + share)

    # ---- the groups

    def _near(self, role: Role, job: TrackedJob) -> list[Worker]:
        return self._groups[role].best(job, NEAREST, TRIES)

    def _outstanding_seconds(self, worker: Worker) -> float:
        a, b, c = self.cost.worker(worker.worker_id).prefill.coefficients
        return a * len(worker.jobs) + b * worker.prompt_tokens + c * worker.prompt_squares

    def _prefill_key(self, worker: Worker) -> tuple[float, ...]:
        return (self._outstanding_seconds(worker),)

    def _decode_key(self, worker: Worker) -> tuple[float, ...]:
        step = self.cost.worker(worker.worker_id).step_seconds(worker.context_tokens, len(worker.jobs))
        return (step * (1.0 + worker.reserved_pages / max(1, worker.info.capacity_pages)),)

    def _group(self, worker: Worker) -> tuple[int, ...]:
        cost = self.cost.worker(worker.worker_id)
        if worker.info.role == "prefill":
            typical = cost.prefill_seconds(_TYPICAL_PROMPT)
        else:
            typical = cost.step_seconds(_TYPICAL_BATCH * _TYPICAL_PROMPT, _TYPICAL_BATCH)
        speed = round(_CLASSES_PER_OCTAVE * math.log2(max(typical, 1e-9)))
        return worker.info.max_context_tokens, worker.info.capacity_pages, speed


def payload_bytes(job: TrackedJob, layout: KVLayout) -> int:
    """What the job's prompt takes on the link as whole pages; the residual is left out."""
    return num_pages(job.prompt_tokens, layout) * layout.layers * layout.kv_heads * layout.page_bytes


def _by_time(entry: tuple[float, Worker]) -> tuple[float, str]:
    return entry[0], entry[1].worker_id
