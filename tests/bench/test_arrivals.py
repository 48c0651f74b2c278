"""Arrival processes: the same for a seed, with the mean and the shape that were asked for."""

from __future__ import annotations

import numpy as np
import pytest

from bench.arrivals import parse_rate, renewal_arrivals, trace_arrivals
from packhorse.errors import ConfigError


def test_seed_fixes_the_times() -> None:
    assert renewal_arrivals(50, 3.0, 1.0, seed=7) == renewal_arrivals(50, 3.0, 1.0, seed=7)
    assert renewal_arrivals(50, 3.0, 1.0, seed=7) != renewal_arrivals(50, 3.0, 1.0, seed=8)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_and_shape(burstiness: float) -> None:
    """4,000 gaps: the mean is within 5 of its standard errors; a gamma's squared coefficient of variation is 1 / shape."""
    times = renewal_arrivals(4001, 5.0, burstiness, seed=1)
    gaps = np.diff(times)
    assert times[0] == 0
    assert gaps.mean() == pytest.approx(0.2, rel=5 / np.sqrt(4000 * burstiness))
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(1 / burstiness, rel=0.3)


def test_infinite_rate_sends_all_at_once() -> None:
    assert renewal_arrivals(3, float("inf"), 1.0, seed=0) == [0.0, 0.0, 0.0]


def test_trace_is_scaled_and_starts_at_zero() -> None:
    assert trace_arrivals([10.0, 12.0, 11.0], speed=2.0) == [0.0, 1.0, 0.5]


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "fast"])
def test_bad_rate_is_named(rate: str) -> None:
    with pytest.raises(ConfigError, match=rate):
        parse_rate(rate)


def test_other_bad_values_are_named() -> None:
    assert parse_rate("trace") is None
    assert parse_rate("inf") == float("inf")
    with pytest.raises(ConfigError, match="burstiness"):
        renewal_arrivals(3, 1.0, 0.0, seed=0)
    with pytest.raises(ConfigError, match="speed"):
        trace_arrivals([0.0], speed=0.0)
    with pytest.raises(ConfigError, match="time"):
        trace_arrivals([0.0, None], speed=1.0)
