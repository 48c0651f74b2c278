"""How many requests per second one instance sustains, as a prefill or as a decode worker, within the SLOs.

Prefill: one queue with Poisson arrivals; waiting times by Pollaczek-Khinchine with an exponential tail. Token 1 leaves the prefill
worker, so TTFT has no transfer in it. Decode: the largest batch that memory and the TPOT limit allow. A job is in the batch as
long as it generates, so the batch's mean context and mean page reservation are weighted by output length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from packhorse.errors import ConfigError

from .cost import Floats, Instance, PageSizes
from .workload import Workload

_BISECTIONS = 40


@dataclass(frozen=True)
class Slo:
    """Limits in seconds; None: none. TTFT holds for a share of the requests (`slo_attainment`), TPOT for the mean decode step."""

    ttft_seconds: float | None = None
    tpot_seconds: float | None = None


@dataclass(frozen=True)
class PrefillRate:
    """`limit` says what bounds the rate, or, where it is 0, why the instance cannot serve the workload."""

    rate: float
    mean_seconds: float
    limit: str


@dataclass(frozen=True)
class DecodeRate:
    """As PrefillRate. `batch` sequences per step of `step_seconds`; `page_bytes` is the room for pages beside their residuals."""

    rate: float
    batch: int
    step_seconds: float
    page_bytes: int
    limit: str


@dataclass(frozen=True, eq=False)
class Demand:
    """What the workload asks of every instance: its lengths, and their means over the jobs of a decode batch."""

    workload: Workload

    def __post_init__(self) -> None:
        if self.decoded_tokens <= 0:
            raise ConfigError(
                f"workload {self.workload.name}: token 1 ends every request, so decode workers have nothing to do"
            )

    @cached_property
    def decoded_tokens(self) -> float:
        """Mean tokens of a request that decode workers generate: all but token 1."""
        return float(np.mean(self.workload.outputs - 1))

    @cached_property
    def final_tokens(self) -> Floats:
        return self.workload.prompts + self.workload.outputs

    @cached_property
    def mean_context(self) -> float:
        """Of a sequence in the batch."""
        return self._in_batch(self.workload.prompts + self.workload.outputs / 2)

    def mean_held_bytes(self, sizes: PageSizes) -> float:
        """Of a sequence in the batch, which reserves what it will become."""
        return self._in_batch(sizes.held(self.final_tokens))

    def mean_shipped_bytes(self, sizes: PageSizes) -> float:
        """Per request; one whose token 1 is its last ships nothing."""
        return float(np.mean(sizes.shipped(self.workload.prompts) * (self.workload.outputs > 1)))

    def _in_batch(self, values: Floats) -> float:
        weights = self.workload.outputs - 1
        return float(np.sum(values * weights) / np.sum(weights))


def prefill_rate(instance: Instance, demand: Demand, slo: Slo) -> PrefillRate:
    prompts, assume = demand.workload.prompts, instance.assume
    alone = instance.prefill_seconds(prompts)
    mean = float(alone.mean())
    if instance.free_bytes <= 0:
        return PrefillRate(0.0, mean, "the weights do not fit")
    if not instance.prefill_fits(float(prompts.max())):
        return PrefillRate(0.0, mean, "the longest prompt does not fit beside the weights")
    work = instance.prefill_work_seconds(prompts)
    most = assume.max_utilization / float(work.mean())
    if slo.ttft_seconds is None or ttft_share(alone, work, most, slo.ttft_seconds) >= assume.slo_attainment:
        return PrefillRate(most, mean, "compute")
    if ttft_share(alone, work, 0.0, slo.ttft_seconds) < assume.slo_attainment:
        return PrefillRate(0.0, mean, "prompts alone take longer than the TTFT limit")
    low, high = 0.0, most
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        met = ttft_share(alone, work, middle, slo.ttft_seconds) >= assume.slo_attainment
        low, high = (middle, high) if met else (low, middle)
    return PrefillRate(low, mean, "waiting within the TTFT limit")


def ttft_share(alone: Floats, work: Floats, rate: float, limit_seconds: float) -> float:
    """Share of requests whose waiting and prefill take at most `limit_seconds`, at `rate` per second on one instance."""
    busy = rate * float(work.mean())
    slack = limit_seconds - alone
    if busy <= 0:
        return float(np.mean(slack >= 0))
    if busy >= 1:
        return 0.0
    mean_wait = rate * float(np.mean(work**2)) / (2 * (1 - busy))
    waits_longer = busy * np.exp(-busy * np.maximum(slack, 0.0) / mean_wait)
    return float(np.mean((slack >= 0) * (1 - waits_longer)))


def ttft_quantile(instance: Instance, demand: Demand, rate: float, share: float) -> float:
    """The TTFT that `share` of the requests keep to; infinite at or above saturation."""
    alone, work = (
        instance.prefill_seconds(demand.workload.prompts),
        instance.prefill_work_seconds(demand.workload.prompts),
    )
    if rate * float(work.mean()) >= 1:
        return float("inf")
    low, high = 0.0, float(alone.max())
    while ttft_share(alone, work, rate, high) < share:
        high *= 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if ttft_share(alone, work, rate, middle) >= share else (middle, high)
    return high


def decode_rate(instance: Instance, demand: Demand, kv_format: str, tpot_seconds: float | None) -> DecodeRate:
    assume, sizes, pool = instance.assume, PageSizes(instance.model, kv_format), instance.pool_bytes
    if instance.free_bytes <= 0:
        return DecodeRate(0.0, 0, 0.0, 0, "the weights do not fit")
    residual = sizes.held(np.zeros(1))[0]
    longest = sizes.held(demand.final_tokens.max(keepdims=True))[0] - residual
    fitting = int(min(pool * assume.pool_fill / demand.mean_held_bytes(sizes), (pool - longest) / residual))
    if fitting < 1:
        return DecodeRate(0.0, 0, 0.0, 0, "the longest sequence does not fit beside the weights")
    batches = np.arange(1.0, min(fitting, assume.max_batch) + 1)
    steps = instance.step_seconds(batches, batches * demand.mean_context, kv_format)
    within = steps if tpot_seconds is None else steps[steps <= tpot_seconds]
    if not len(within):
        return DecodeRate(0.0, 0, float(steps[0]), 0, "a step of one sequence takes longer than the TPOT limit")
    batch, step = len(within), float(within[-1])
    limit = "TPOT" if batch < len(batches) else "memory" if batch < assume.max_batch else "the largest batch"
    return DecodeRate(batch / (demand.decoded_tokens * step), batch, step, int(pool - batch * residual), limit)
