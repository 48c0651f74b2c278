"""Least predicted completion: the pair on which a job is expected to be done first, on workers and links of any speed.

    completion = queue of prefill + prefill + transfer over the pair's link + decode over the job's predicted life

queue     until the worker has computed the prompts that it holds (`PrefillQueues`), by its own coefficients
transfer  the prompt's pages that the decode worker does not hold already, and the residual
decode    n - 1 steps of the batch with the job in it, each over the batch's mean context

The pair is chosen by completion plus what the job costs the others: what it adds to each step of the jobs beside it, its time times
the share of the pool's pages that would then be reserved, and the time that its bytes take of either worker's port times the jobs whose
bytes have yet to go through it. After the routing idea of arXiv 2504.15303 (compute and memory are separate
capacities; route by predicted length on workers of unlike speed), whose formulas were not to be found: the terms are ours. That a
job is charged for slowing the others down keeps fast workers from filling up until they are as slow as the slow ones; the share of pages
steers towards memory when steps are alike. What a port takes is known from the NICs as the workers state them: samples show only what
prefill does not hide of a transfer, which is next to nothing until a port is overloaded, and then its prefill workers' places fill up
with prompts that wait for it.

A job may also wait for a place on a faster worker (`Patience`): a full decode worker is predicted to give up places at the rate
at which its jobs, halfway through their lives in the mean, end; a full prefill worker, in the order of its queue.

Not all pairs are tried: within groups of workers of like size and speed the order by load is the order for any job, so the first of
each group stands for it (where there are few groups the NEAREST), and of those the best BEST on both sides are paired. To them comes the
best of the decode workers that hold the longest prefix of the prompt.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from scheduler.cost import CostModel
from scheduler.jobs import TrackedJob
from scheduler.pages import num_pages
from scheduler.placement.base import Pair, Placement
from scheduler.placement.patience import Patience
from scheduler.placement.prefill_queue import PrefillQueues
from scheduler.recent import RecentLengths
from scheduler.workers import Worker
from transport.messages import KVLayout, Role

NEAREST = 2
TRIES = 8
BEST = 4
_CLASSES_PER_OCTAVE = 2
_TYPICAL_PROMPT = 1024
_TYPICAL_BATCH = 16
_TYPICAL: dict[Role, tuple[int, int]] = {  # what b and c of the cost model are multiplied by
    "prefill": (_TYPICAL_PROMPT, _TYPICAL_PROMPT**2),
    "decode": (_TYPICAL_BATCH * _TYPICAL_PROMPT, _TYPICAL_BATCH),
}
_REMEMBERED = 1 << 12  # speeds: a worker's changes only when its costs are fitted anew
_RAW_BYTES = {"float32": 4}  # of a value of the residual; else 2


class Side(NamedTuple):
    """One worker as the job's prefill or decode worker. `wait`: until it could start; `gap`: 0 where there is room now, else the mean
    time between two places that come free in its class. `on_others`: seconds that the job costs them.
    """

    total: float
    worker_id: str
    worker: Worker
    wait: float
    seconds: float
    on_others: float
    gap: float


# What becomes a Side only when it is chosen: most are not, and plain tuples are made and read in a fraction of the time.
_Side = tuple[float, str, Worker, float, float, float, float]


class Choice(NamedTuple):
    """`cost` is completion with what the job costs others, `on_ports` of it those whose bytes go through the same ports; a `gap` above 0
    means that it would have to wait.
    """

    cost: float
    prefill: Side
    decode: Side | None
    ship: float = 0.0
    on_ports: float = 0.0

    @property
    def gap(self) -> float:
        return max(self.prefill.gap, self.decode.gap if self.decode is not None else 0.0)

    def pair(self) -> Pair:
        prefill, decode = self.prefill, self.decode
        why = f"queue {prefill.wait:.3f} s, prefill {prefill.seconds:.3f} s"
        if decode is None:
            return Pair(prefill.worker, None, prefill.wait + prefill.seconds, why)
        seconds = prefill.wait + prefill.seconds + self.ship + decode.seconds
        why += f", transfer {self.ship:.3f} s, decode {decode.seconds:.3f} s"
        why += f"; costs others {decode.on_others + self.on_ports:.3f} s"
        return Pair(prefill.worker, decode.worker, seconds, why)


class PredictedCompletion(Placement):
    name = "predicted"
    waits = True

    def __init__(self, cost: CostModel | None = None) -> None:
        super().__init__(cost)
        self._queues, self._patience, self._recent = PrefillQueues(), Patience(), RecentLengths()

    def observe(self, output_tokens: int) -> None:
        self._recent.add(output_tokens)

    def _pair(self, job: TrackedJob) -> Pair | None:
        prefills = _least(self._prefills(job, self._near("prefill", job)))
        decodes = self._near_decodes(job) if job.needs_decode and prefills else []
        if not prefills or (job.needs_decode and not decodes):
            return None
        best = self._best(job, prefills, decodes)
        if self._waits_for_better(job, best, prefills, decodes):
            self.waiting = True
            return None
        self._patience.placed(self.now)
        return best.pair()

    def _best(self, job: TrackedJob, prefills: list[_Side], decodes: list[_Side]) -> Choice:
        """The pair of the least cost; of those that are as good the first by worker ids."""
        if not job.needs_decode:
            only = Side(*min(prefills))
            return Choice(only.total, only, None)
        least, found, transfer_seconds = math.inf, (prefills[0], decodes[0], 0.0, 0.0), self.cost.transfer_seconds
        cost_of = self.cost.worker
        ways_out = [(side, cost_of(side[1]).byte_seconds, len(side[2].jobs)) for side in prefills]
        whole, slot_bytes = _payload(job, decodes[0][2].info.layout)
        for decode in decodes:
            _, decode_id, worker, wait, seconds, on_others, _ = decode
            size, rest = whole - worker.prefix_pages(job) * slot_bytes, seconds + on_others
            way_in, inbound = cost_of(decode_id).byte_seconds, len(worker.inbound)
            for prefill, way_out, outbound in ways_out:
                _, prefill_id, _, queue, seconds, _, _ = prefill
                ready = (queue if queue > wait else wait) + seconds
                if ready + rest < least:  # else it is too late whatever the transfer takes
                    ship = transfer_seconds(prefill_id, decode_id, size)
                    on_ports = size * (way_out * outbound + way_in * inbound)
                    cost = ready + ship + rest + on_ports
                    if cost < least:
                        least, found = cost, (prefill, decode, ship, on_ports)
        best_prefill, best_decode, ship, on_ports = found
        return Choice(least, Side(*best_prefill), Side(*best_decode), ship, on_ports)

    # ---- waiting for a place

    def _waits_for_better(self, job: TrackedJob, now: Choice, prefills: list[_Side], decodes: list[_Side]) -> bool:
        waited = self.now - job.submitted_at
        gain = now.cost - waited
        full_prefills = self._full_prefills(job, gain)
        full_decodes = self._full_decodes(job, gain) if job.needs_decode else []
        if not full_prefills and not full_decodes:
            return False
        later = self._best(job, _least(prefills + full_prefills), _least(decodes + full_decodes))
        return later.gap > 0 and self._patience.waits(now.cost, later.cost, later.gap, self.queued, waited)

    def _full_prefills(self, job: TrackedJob, most_seconds: float) -> list[_Side]:
        """The first of each group that has no place, where the job would be through in less than that."""
        fronts = self._full["prefill"].fronts(0, job.context_at("prefill"))
        sides = self._prefills(job, [worker for worker, _ in fronts])
        return [
            (total, worker_id, worker, wait, seconds, 0.0, seconds / count)
            for (total, worker_id, worker, wait, seconds, _, _), (_, count) in zip(sides, fronts, strict=True)
            if total < most_seconds
        ]

    def _full_decodes(self, job: TrackedJob, most_seconds: float) -> list[_Side]:
        found, context_tokens = [], job.context_at("decode")
        for groups in (self._full["decode"], self._groups["decode"]):
            for worker, count in groups.fronts(job.pages, context_tokens):
                wait = self._seconds_to_place(job, worker)
                if wait < most_seconds:
                    found.append((worker, wait, wait / count))
        sides = self._decodes(job, [worker for worker, _, _ in found])
        return [
            (total + wait, worker_id, worker, wait, seconds, on_others, gap)
            for (total, worker_id, worker, _, seconds, on_others, _), (_, wait, gap) in zip(sides, found, strict=True)
        ]

    def _seconds_to_place(self, job: TrackedJob, worker: Worker) -> float:
        """Until as many of its jobs have ended that this one fits; `held` jobs that run through one life each end at held / life."""
        held, context, reserved = len(worker.jobs), worker.context_tokens, worker.reserved_pages
        a, b, c = self.cost.worker(worker.worker_id).decode.coefficients
        step, tokens = a + b * context + c * held, 2 * (context - worker.prompt_tokens) / held
        ending = (job.pages + reserved - worker.info.capacity_pages) * held / (reserved or 1)
        return max(1.0, ending) * tokens * step / held

    # ---- what a worker would need

    def _prefills(self, job: TrackedJob, workers: list[Worker]) -> list[_Side]:
        tokens, squares, now = job.prompt_tokens, job.prompt_tokens**2, self.now
        cost_of, wait_at, found = self.cost.worker, self._queues.wait, []
        for worker in workers:
            worker_id = worker.worker_id
            a, b, c = cost_of(worker_id).prefill.coefficients
            seconds, wait = a + b * tokens + c * squares, wait_at(worker_id, now)
            found.append((wait + seconds, worker_id, worker, wait, seconds, 0.0, 0.0))
        return found

    def _decodes(self, job: TrackedJob, workers: list[Worker]) -> list[_Side]:
        steps, context, pages = self._steps(job), job.context_tokens, job.pages
        cost_of, found = self.cost.worker, []
        for worker in workers:
            worker_id, held = worker.worker_id, len(worker.jobs)
            a, b, c = cost_of(worker_id).decode.coefficients
            seconds = steps * (a + b * (worker.context_tokens + context) + c * (held + 1))
            slowed = steps * held * (b * context + c)
            share = (worker.reserved_pages + pages) / (worker.info.capacity_pages or 1)
            on_others = slowed + (seconds + slowed) * share
            found.append((seconds + on_others, worker_id, worker, 0.0, seconds, on_others, 0.0))
        return found

    def _steps(self, job: TrackedJob) -> float:
        """Of decoding, to be expected; where nothing less than its limit is predicted, by the jobs that ended lately."""
        forecast, limit = job.forecast, job.forecast.max_tokens
        if forecast.tokens[0] == limit:
            forecast = self._recent.forecast(limit)
        return max(0.0, forecast.quantile(0.5) - 1.0)

    def _near_decodes(self, job: TrackedJob) -> list[_Side]:
        """The best of those near, and of those that hold most of the prompt already, however they are loaded."""
        best = _least(self._decodes(job, self._near("decode", job)))
        holders = self._workers.prefix_holders(job) if self._workers is not None else []
        if not holders:
            return best
        tried = {side[1] for side in best}
        others = [worker for worker in holders if worker.worker_id not in tried and worker.has_room_for(job)]
        return [*best, min(self._decodes(job, others))] if others else best

    # ---- the groups

    def _near(self, role: Role, job: TrackedJob) -> list[Worker]:
        groups = self._groups[role]
        return groups.best(job, NEAREST if groups.count <= BEST else 1, TRIES)

    def _prefill_key(self, worker: Worker) -> tuple[float, ...]:
        a, b, c = self.cost.worker(worker.worker_id).prefill.coefficients
        outstanding = a * len(worker.jobs) + b * worker.prompt_tokens + c * worker.prompt_squares
        self._queues.update(worker.worker_id, outstanding, self.now)
        return (self._queues.free_at(worker.worker_id),)

    def _decode_key(self, worker: Worker) -> tuple[float, ...]:
        """What a typical job would cost there, per token."""
        held, (a, b, c) = len(worker.jobs), self.cost.worker(worker.worker_id).decode.coefficients
        step = a + b * worker.context_tokens + c * held + held * (b * _TYPICAL_PROMPT + c)
        return (step * (1.0 + worker.reserved_pages / max(1, worker.info.capacity_pages)),)

    def _left(self, worker_id: str) -> None:
        self._queues.forget(worker_id)

    def _group(self, worker: Worker) -> tuple[int, ...]:
        info, cost = worker.info, self.cost.worker(worker.worker_id)
        fitted = cost.prefill if info.role == "prefill" else cost.decode
        return info.max_context_tokens, info.capacity_pages, _speed(fitted.coefficients, info.role)


@lru_cache(_REMEMBERED)
def _speed(coefficients: tuple[float, ...], role: Role) -> int:
    """The class of workers that take about as long for what is typical."""
    (a, b, c), (tokens, count) = coefficients, _TYPICAL[role]
    return round(_CLASSES_PER_OCTAVE * math.log2(max(a + b * tokens + c * count, 1e-9)))


def _least(sides: list[_Side]) -> list[_Side]:
    """The best, best first; ties by worker id."""
    return sorted(sides)[:BEST]


def payload_bytes(job: TrackedJob, decode: Worker) -> int:
    """What of the job's prompt goes to the decode worker: the pages that it does not hold, and the residual's tokens."""
    whole, slot_bytes = _payload(job, decode.info.layout)
    return whole - decode.prefix_pages(job) * slot_bytes


def _payload(job: TrackedJob, layout: KVLayout) -> tuple[int, int]:
    """(bytes of all pages and of the residual, bytes of one page in all layers)."""
    pages, heads = num_pages(job.prompt_tokens, layout), layout.layers * layout.kv_heads
    slot_bytes = heads * layout.page_bytes
    token_bytes = 2 * heads * layout.head_dim * _RAW_BYTES.get(layout.dtype, 2)
    return pages * slot_bytes + (job.prompt_tokens - pages * layout.page_tokens) * token_bytes, slot_bytes
