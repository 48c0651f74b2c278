"""Forecasts are finite, ordered and within the job's limit whatever they were made from; remaining lengths follow progress."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.forecast import LEVELS, Forecast

ANY = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(ANY, min_size=len(LEVELS), max_size=len(LEVELS)), ANY, st.integers(1, 10**6), st.integers(0, 2 * 10**6))
def test_any_prediction_becomes_a_safe_forecast(
    tokens: list[float], score: float, max_tokens: int, generated: int
) -> None:
    forecast = Forecast.made(tokens, max_tokens, score)
    assert math.isfinite(forecast.score)
    quantiles = [forecast.quantile(p / 20) for p in range(1, 20)]
    assert all(1 <= n <= max_tokens for n in quantiles)
    assert all(one <= two + 1e-6 * two for one, two in pairwise(quantiles))
    left = [forecast.remaining(p / 10, generated) for p in range(1, 10)]
    assert all(1 <= n <= max(1, max_tokens - generated) for n in left)
    assert all(one <= two + 1e-6 * two for one, two in pairwise(left))


def test_quantiles_are_met_at_their_levels_and_linear_between() -> None:
    forecast = Forecast.made([10, 20, 40, 80, 160], 1000)
    assert [forecast.quantile(level) for level in LEVELS] == [10, 20, 40, 80, 160]
    assert forecast.quantile(0.375) == 30
    assert forecast.score == -40


def test_an_exact_length_counts_down() -> None:
    forecast = Forecast.exact(100, 1000)
    assert [forecast.remaining(0.5, generated) for generated in (0, 1, 60, 99)] == [100, 99, 40, 1]


def test_a_job_that_outlives_its_prediction_is_believed_longer() -> None:
    forecast = Forecast.made([10, 20, 40, 80, 160], 1000)
    assert forecast.remaining(0.5, 0) == 40
    assert forecast.remaining(0.5, 40) == pytest.approx(40)  # the median of those above 40 is the 0.75 quantile
    assert forecast.remaining(0.5, 160) > 0
    assert forecast.remaining(0.5, 400) == 200
    assert forecast.remaining(0.5, 990) == 10


def test_without_a_prediction_the_limit_is_believed() -> None:
    assert Forecast.unknown(300).remaining(0.5, 100) == 200


def test_gittins_index_is_what_is_left_where_that_is_known_and_rewards_a_chance_to_end_soon() -> None:
    assert Forecast.exact(100, 1000).gittins(40) == 60
    surely, maybe = Forecast.made([95, 98, 100, 102, 105], 1000), Forecast.made([2, 5, 100, 102, 105], 1000)
    assert maybe.gittins(0) < surely.gittins(0)
    assert maybe.gittins(20) == pytest.approx(surely.gittins(20), rel=0.3)  # it did not end soon


@dataclass
class Said:
    """A prediction."""

    lengths: tuple[float, ...]
    mean: float
    score: float = 0.0

    def quantile(self, p: float) -> float:
        return self.lengths[LEVELS.index(p)]


def test_gittins_index_is_about_the_mean_where_that_is_predicted_apart() -> None:
    alike = (40.0, 60.0, 100.0, 150.0, 200.0)
    less, more = (Forecast.of(Said(alike, mean), 1000) for mean in (90.0, 180.0))
    assert less.tokens == more.tokens == alike
    assert less.gittins(0) < more.gittins(0)
    assert more.gittins(0) == pytest.approx(2 * less.gittins(0), rel=0.01)
    as_levels_have_it = Forecast.made(alike, 1000)
    assert Forecast.of(Said(alike, as_levels_have_it.mean), 1000).gittins(30) == as_levels_have_it.gittins(30)


@pytest.mark.parametrize("mean", [math.nan, math.inf, -5.0, 0.0, 39.0, 401.0])
def test_a_mean_that_such_quantiles_cannot_have_does_not_count(mean: float) -> None:
    alike = (40.0, 60.0, 100.0, 150.0, 200.0)
    assert Forecast.of(Said(alike, mean), 1000) == Forecast.made(alike, 1000, score=0.0)


@given(st.lists(ANY, min_size=len(LEVELS), max_size=len(LEVELS)), st.integers(1, 10**6), st.integers(0, 2 * 10**6))
def test_gittins_index_of_any_prediction_is_within_the_limits(
    tokens: list[float], max_tokens: int, generated: int
) -> None:
    assert 1 <= Forecast.made(tokens, max_tokens).gittins(generated) <= max(1, max_tokens - generated)
