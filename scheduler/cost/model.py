"""The cost model: prefill a + b*n + c*n^2, decode step a + b*context + c*batch, transfer a + b*bytes, for each worker and link.

Time models after ALISE's and DistServe's published forms. Workers start from priors (scheduler/planner/priors.py) and are fitted
to the samples that they report. Knows nothing of jobs, queues or messages; one owner, no locks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import ErrorWindow
from .fitted_time import FittedTime
from .link_time import LinkTime
from .prior import DEFAULT_PRIOR, WorkerPrior


@dataclass
class FleetErrors:
    """Predicted against actual, of all workers together."""

    prefill: ErrorWindow = field(default_factory=ErrorWindow)
    decode: ErrorWindow = field(default_factory=ErrorWindow)
    transfer: ErrorWindow = field(default_factory=ErrorWindow)
    host: ErrorWindow = field(default_factory=ErrorWindow)


@dataclass
class WorkerCost:
    """One worker: `prefill` is of use on prefill workers, `decode` on decode workers; `transfer` is what leaves or enters it.

    `byte_seconds` is what a byte takes of its network port, as it was believed at first: measured transfers, of which prefill hides
    all but the end, do not tell.
    """

    prefill: FittedTime
    decode: FittedTime
    transfer: FittedTime
    host: FittedTime
    byte_seconds: float

    @classmethod
    def of(cls, prior: WorkerPrior, fleet: FleetErrors | None = None) -> WorkerCost:
        errors = fleet or FleetErrors()
        return cls(
            FittedTime(prior.prefill, errors=errors.prefill),
            FittedTime(prior.decode, errors=errors.decode),
            FittedTime(prior.transfer, errors=errors.transfer),
            FittedTime(prior.host, errors=errors.host),
            prior.transfer[1],
        )

    def prefill_seconds(self, tokens: int, cached_tokens: int = 0) -> float:
        """Of a prompt of `tokens`, the first `cached_tokens` of which are held already and only attended to."""
        a, b, c = self.prefill.coefficients
        return a + b * (tokens - cached_tokens) + c * (tokens * tokens - cached_tokens * cached_tokens)

    def step_seconds(self, context_tokens: int, batch: int) -> float:
        """Of one decode step over `batch` sequences that hold `context_tokens` together."""
        a, b, c = self.decode.coefficients
        return a + b * context_tokens + c * batch

    def move_seconds(self, num_bytes: int) -> float:
        """Of a copy between device and host memory, one way."""
        a, b = self.host.coefficients
        return a + b * num_bytes

    def observe_move(self, num_bytes: int, seconds: float) -> None:
        self.host.observe((1, num_bytes), seconds)

    def observe_prefill(self, tokens: int, seconds: float, cached_tokens: int = 0) -> None:
        self.prefill.observe((1, tokens - cached_tokens, tokens**2 - cached_tokens**2), seconds)

    def observe_step(self, context_tokens: float, batch: float, seconds: float) -> None:
        """One step, or the mean of some."""
        self.decode.observe((1, context_tokens, batch), seconds)


class CostModel:
    """All workers by id, and the links between them by pair. Asking for an unknown worker makes it, from its prior.

    A pair's transfers are predicted by what was sent over it, before that by the prefill worker's fit, which sees all of its pairs
    and is where a pair starts from; a pair is kept only once something was sent over it.
    """

    def __init__(self, default: WorkerPrior = DEFAULT_PRIOR) -> None:
        self.fleet = FleetErrors()
        self._default = default
        self._workers: dict[str, WorkerCost] = {}
        self._links: dict[str, dict[str, LinkTime]] = {}  # by prefill worker, then by decode worker

    def add(self, worker_id: str, prior: WorkerPrior | None = None) -> WorkerCost:
        """A worker that starts from `prior` (default: the model's); what was known of the id is dropped."""
        self.forget(worker_id)
        worker = self._workers[worker_id] = WorkerCost.of(prior or self._default, self.fleet)
        return worker

    def worker(self, worker_id: str) -> WorkerCost:
        try:
            return self._workers[worker_id]
        except KeyError:
            return self.add(worker_id)

    def forget(self, worker_id: str) -> None:
        """Drops the worker and its links; an unknown id changes nothing."""
        if self._workers.pop(worker_id, None) is not None:
            self._links.pop(worker_id, None)
            for links in self._links.values():
                links.pop(worker_id, None)

    def transfer_seconds(self, prefill_worker: str, decode_worker: str, num_bytes: int) -> float:
        links = self._links.get(prefill_worker)
        link = links.get(decode_worker) if links is not None else None
        a, b = (link or self.worker(prefill_worker).transfer).coefficients
        return a + b * num_bytes

    def observe_transfer(self, prefill_worker: str, decode_worker: str, num_bytes: int, seconds: float) -> None:
        """A measured transfer: it counts for the pair and for the prefill worker."""
        known = self.worker(prefill_worker).transfer
        before, links = known.coefficients, self._links.setdefault(prefill_worker, {})
        predicted = self.transfer_seconds(prefill_worker, decode_worker, num_bytes)
        if known.observe((1, num_bytes), seconds, predicted):
            if decode_worker not in links:
                links[decode_worker] = LinkTime(before)
            links[decode_worker].observe(num_bytes, seconds)
