"""When requests arrive: a seeded renewal process, all at once, or the times of a trace.

This file knows nothing of what is sent. Times are seconds from the start of the run; the first request arrives at 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from packhorse.errors import ConfigError


def parse_rate(text: str) -> float | None:
    """Requests per second: a positive number, or inf; None for "trace". Raises ConfigError naming the value."""
    if text == "trace":
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not rate > 0:
        raise ConfigError(f"rate={text!r} is not a positive number, 'inf' or 'trace'", param="rate")
    return rate


def renewal_arrivals(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Arrival times with gamma-distributed gaps of mean 1 / rate and shape `burstiness`: 1 is Poisson, less is burstier.

    The same seed gives the same times; a rate of inf gives `count` zeros. Raises ConfigError for burstiness <= 0.
    """
    if not burstiness > 0:
        raise ConfigError(f"burstiness={burstiness} is not a positive number", param="burstiness")
    if math.isinf(rate) or count <= 1:
        return [0.0] * count
    gaps = np.random.default_rng(seed).gamma(burstiness, 1 / (rate * burstiness), count - 1)
    return [0.0, *np.cumsum(gaps).tolist()]


def trace_arrivals(times: Sequence[float | None], speed: float) -> list[float]:
    """The dataset's own arrival times from its first request, `speed` times as fast. Raises ConfigError where one has none."""
    if not speed > 0:
        raise ConfigError(f"speed={speed} is not a positive number", param="speed")
    known = [time for time in times if time is not None]
    if len(known) < len(times) or not known:
        raise ConfigError("rate=trace needs a dataset in which every request has a time", param="rate")
    start = min(known)
    return [(time - start) / speed for time in known]
