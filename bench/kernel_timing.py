"""Times several functions against each other in one process: interleaved, in shuffled order, caches cold or warm. Knows no kernel."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from bench.roofline import cache_bytes

LEAST_REPEATS = 5
CACHES_FLUSHED = 3

Run = Callable[[], object]
Clock = Callable[[Run], float]


@dataclass(frozen=True)
class Spread:
    """Seconds."""

    median: float
    p20: float
    p80: float


class CpuClock:
    """Seconds of one call, caches cold: a buffer of CACHES_FLUSHED last-level caches is read through before."""

    def __init__(self) -> None:
        self._buffer = torch.ones(CACHES_FLUSHED * cache_bytes("cpu") // 8, dtype=torch.int64)

    def __call__(self, run: Run) -> float:
        self._buffer.sum()
        return self._time(run)

    def warm(self, run: Run) -> float:
        run()
        return self._time(run)

    def _time(self, run: Run) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


class CudaClock:
    """The same between two events; the buffer is written, and the launch hides behind that write."""

    def __init__(self) -> None:
        self._buffer = torch.ones(CACHES_FLUSHED * cache_bytes("cuda"), dtype=torch.uint8, device="cuda")

    def __call__(self, run: Run) -> float:
        return self._time(run, self._buffer.zero_)

    def warm(self, run: Run) -> float:
        return self._time(run, run)

    def _time(self, run: Run, before: Run) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before()
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def make_clock(device: str, caches: str) -> Clock:
    """`caches` is "cold", or "warm": the same call was made just before, and what fits the caches is there."""
    clock = CudaClock() if device == "cuda" else CpuClock()
    return clock if caches == "cold" else clock.warm


def time_interleaved(
    runs: Mapping[str, Run], clock: Clock, repeats: int, seed: int, budget_seconds: float
) -> dict[str, Spread]:
    """Rounds of one call each, in an order shuffled by `seed`. A function that has used up its budget after LEAST_REPEATS calls
    sits out the remaining rounds; its last calls and the others' still alternate."""
    order = list(runs)
    shuffle = random.Random(seed).shuffle
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            if len(samples[name]) < LEAST_REPEATS or sum(samples[name]) < budget_seconds:
                samples[name].append(clock(runs[name]))
    return {name: spread(times) for name, times in samples.items()}


def spread(samples: list[float]) -> Spread:
    """Median, 20th and 80th percentile of at least one sample, interpolated."""
    p20, median, p80 = torch.tensor(samples, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8]).double())
    return Spread(float(median), float(p20), float(p80))
