"""What a live cluster's requests cost, from their records: coefficients for a simulation of the same cluster.

All fits are plain least squares: the mean is to be predicted, so what is slow at times must count as often as it happens. Knows nothing of
how the records were made, except that the requests of one part shared the cluster and no others did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from scipy.optimize import nnls

from bench.record import RequestRecord
from scheduler.cost import DEFAULT_PRIOR, WorkerPrior

Part = Sequence[RequestRecord]
_FEW_TOKENS = 4  # a request of fewer says nothing of a step


@dataclass(frozen=True)
class Fit:
    """`cost` of the workers; `overhead_seconds` is what a request takes beside them: client, gateway, scheduler, sockets."""

    cost: WorkerPrior
    overhead_seconds: float


def fit_costs(parts: Sequence[Part], simulated_ttft: Callable[[WorkerPrior], float]) -> Fit:
    """From parts that ran like what is to be predicted; `simulated_ttft` is the mean TTFT of all their requests with those costs.

    What is missing from it to the measured mean is the overhead. Raises ValueError when no request tells of prefill or of steps.
    """
    records = [record for part in parts for record in part]
    cost = WorkerPrior(_prefill(parts), _step(parts), (_latency(parts), DEFAULT_PRIOR.transfer[1]))
    measured = fmean(record.ttft for record in records if record.ttft is not None)
    return Fit(cost, max(0.0, measured - simulated_ttft(cost)))


def _prefill(parts: Sequence[Part]) -> tuple[float, float, float]:
    """Of prompts that no other prompt shared a chunk with."""
    alone = [record for part in parts for record in _not_shared(part)]
    if not alone:
        raise ValueError("no request had a prefill to itself")
    prompts = np.array([float(record.prompt_tokens or 1) for record in alone])
    features = np.stack([np.ones_like(prompts), prompts, prompts**2], axis=1)
    a, b, c = _least_squares(features, np.array([prefill_seconds(record) for record in alone]))
    return a, b, c


def _not_shared(part: Part) -> list[RequestRecord]:
    """By the times between which each prompt was in work: it ends with token 1."""
    told = [record for record in part if record.kv_transfer and record.first_token is not None]
    begins = [(record.first_token or 0.0) - prefill_seconds(record) for record in told]
    ends = [record.first_token or 0.0 for record in told]
    return [
        record
        for i, record in enumerate(told)
        if not any(
            begin < ends[i] and begins[i] < end
            for j, (begin, end) in enumerate(zip(begins, ends, strict=True))
            if j != i
        )
    ]


def _step(parts: Sequence[Part]) -> tuple[float, float, float]:
    rows = np.array([row for part in parts for row in step_samples(part)])
    if not len(rows):
        raise ValueError(f"no request generated {_FEW_TOKENS} tokens or more")
    weights = np.sqrt(rows[:, 4])
    a, b, c = _least_squares(rows[:, :3] * weights[:, None], rows[:, 3] * weights)
    return a, b, c


def step_samples(part: Part) -> list[tuple[float, float, float, float, int]]:
    """(1, mean context of the batch, mean batch, mean seconds of a step, steps) over each request's life from the second token on.

    Between the first two tokens lies shipping.
    """
    long = [record for record in part if len(record.chunk_times) >= _FEW_TOKENS]
    spans = [(r.chunk_times[1], r.chunk_times[-1], (r.prompt_tokens or 0) + r.completion_tokens / 2, r) for r in long]
    samples = []
    for begin, end, _, record in spans:
        if end <= begin:
            continue
        shares = [(max(0.0, min(end, e) - max(begin, b)) / (end - begin), context) for b, e, context, _ in spans]
        batch = sum(share for share, _ in shares)
        context = sum(share * tokens for share, tokens in shares)
        steps = record.completion_tokens - 2
        samples.append((1.0, context, batch, (end - begin) / steps, steps))
    return samples


def _latency(parts: Sequence[Part]) -> float:
    """Of shipping: the gap between the first two tokens, less a step and half of the one under way when the pages come."""
    long = [record for part in parts for record in part if len(record.chunk_times) >= _FEW_TOKENS]
    gaps = fmean(record.itl[0] for record in long)
    return max(0.0, gaps - 1.5 * fmean(fmean(record.itl[1:]) for record in long))


def prefill_seconds(record: RequestRecord) -> float:
    """As the prefill worker reports it."""
    assert record.kv_transfer is not None
    return float(record.kv_transfer["prefill_seconds"])


def _least_squares(features: np.ndarray[Any, Any], seconds: np.ndarray[Any, Any]) -> list[float]:
    """With no coefficient below 0."""
    scale = np.maximum(features.mean(axis=0), 1e-12)
    found, _ = nnls(features / scale, seconds)
    return [float(value) for value in found / scale]
