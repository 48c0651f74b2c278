"""Declared tool pauses for a simulated workload, so that policies can be compared by what they do with memory meanwhile.

Which requests pause, where and for how long is drawn by the seed. No data set that we read has pauses of its own.
"""

from __future__ import annotations

import random
from dataclasses import replace

from scheduler.simulator import Workload

# Seconds: log-normal, from quick look-ups to slow pages and people, at most what a request may declare. Ours.
MEDIAN_SECONDS, SIGMA, MAX_SECONDS = 2.0, 1.5, 600.0


def with_pauses(load: Workload, share: float, seed: int) -> Workload:
    """The workload in which about `share` of the requests with two tokens of output or more pause once, somewhere before their last."""
    if share == 0:
        return load
    rng = random.Random(f"tool pauses/{load.name}/{seed}")
    return replace(load, pauses=[_pause(rng, output, share) for output in load.output_tokens])


def _pause(rng: random.Random, output_tokens: int, share: float) -> tuple[int, float] | None:
    """(tokens of output before it, seconds)."""
    chosen, place, seconds = rng.random() < share, rng.random(), MEDIAN_SECONDS * rng.lognormvariate(0, SIGMA)
    if not chosen or output_tokens < 2:
        return None
    return 1 + int(place * (output_tokens - 1)), min(seconds, MAX_SECONDS)
