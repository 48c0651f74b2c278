"""What happened to every request, in columns, and the figures of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from scheduler.simulator.workload import Workload

WAITING, DONE, FAILED, CANCELLED = range(4)


@dataclass(frozen=True)
class Slo:
    """Goodput counts the requests within both limits; a request of one token has no time per token."""

    ttft_seconds: float = 5.0
    tpot_seconds: float = 0.2


@dataclass
class Records:
    """Columns by request index; times are NaN until they are known."""

    workload: Workload
    arrived: list[float] = field(init=False)
    prefill_started: list[float] = field(init=False)
    first_token: list[float] = field(init=False)
    ended: list[float] = field(init=False)
    paused_seconds: list[float] = field(init=False)  # the longest pause between two tokens
    status: bytearray = field(init=False)
    errors: dict[int, str] = field(default_factory=dict)
    bytes_shipped: int = 0  # of all prompts together, those included that were sent for nothing or twice
    bytes_held: int = 0  # of pages that were not sent

    def __post_init__(self) -> None:
        count = len(self.workload)
        self.arrived, self.prefill_started, self.first_token, self.ended = ([math.nan] * count for _ in range(4))
        self.paused_seconds = [0.0] * count
        self.status = bytearray(count)

    def end(self, index: int, status: int, now: float, error: str = "") -> None:
        """The request has its outcome. A second one is an error of the system under simulation."""
        assert self.status[index] == WAITING, f"request {index} ended twice"
        self.status[index] = status
        self.ended[index] = now
        if error:
            self.errors[index] = error


@dataclass(frozen=True)
class Figures:
    """Of one run. Latencies are of completed requests, seconds from arrival.

    `max_wait_seconds` is the longest that any request, completed or not, went without work on it: from arrival until its prefill
    starts (or until it ends), or paused between two tokens. `goodput` is requests per second within the SLO,
    `throughput_tokens_per_second` counts output tokens; both from the first arrival to the last end. `gigabytes_shipped` are of prompts'
    pages and residuals, and `held_share` is what decode workers held of these, beside what was shipped.
    """

    requests: int
    completed: int
    failed: int
    cancelled: int
    duration_seconds: float
    mean_jct_seconds: float
    p50_jct_seconds: float
    p99_jct_seconds: float
    mean_ttft_seconds: float
    max_wait_seconds: float
    goodput: float
    throughput_tokens_per_second: float
    gigabytes_shipped: float
    held_share: float


def summarize(records: Records, slo: Slo) -> Figures:
    """Raises ValueError while a request has no outcome."""
    status = np.frombuffer(records.status, dtype=np.uint8)
    if np.any(status == WAITING):
        raise ValueError(f"{int(np.sum(status == WAITING))} requests have no outcome")
    done = status == DONE
    arrived, first, ended = (np.asarray(column) for column in (records.arrived, records.first_token, records.ended))
    output = np.asarray(records.workload.output_tokens)
    jct, ttft = (ended - arrived)[done], (first - arrived)[done]
    tpot = ((ended - first) / np.maximum(1, output - 1))[done]
    begun = np.asarray(records.prefill_started)
    waits = np.maximum(np.where(np.isnan(begun), ended, begun) - arrived, np.asarray(records.paused_seconds))
    duration = float(ended.max() - arrived.min())
    p50, p99 = np.percentile(jct, (50, 99)).tolist() if len(jct) else (math.nan, math.nan)
    within = int(np.sum((ttft <= slo.ttft_seconds) & (tpot <= slo.tpot_seconds)))
    return Figures(
        requests=len(status),
        completed=int(done.sum()),
        failed=int(np.sum(status == FAILED)),
        cancelled=int(np.sum(status == CANCELLED)),
        duration_seconds=duration,
        mean_jct_seconds=float(jct.mean()) if len(jct) else math.nan,
        p50_jct_seconds=p50,
        p99_jct_seconds=p99,
        mean_ttft_seconds=float(ttft.mean()) if len(ttft) else math.nan,
        max_wait_seconds=float(waits.max()),
        goodput=within / duration if duration > 0 else 0.0,
        throughput_tokens_per_second=float(output[done].sum()) / duration if duration > 0 else 0.0,
        gigabytes_shipped=records.bytes_shipped / 1e9,
        held_share=records.bytes_held / max(1, records.bytes_held + records.bytes_shipped),
    )
