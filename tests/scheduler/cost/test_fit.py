"""The fit finds the coefficients behind noisy samples, whatever outliers do, and keeps to its prior where samples say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.cost import FittedTime, fit_relative

TRUE = np.array([0.02, 1e-4, 5e-9])
PRIOR = (0.005, 2e-4, 1e-9)


def prefill_samples(count: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = np.exp(rng.uniform(np.log(16), np.log(32_000), count))
    features = np.stack([np.ones(count), tokens, tokens**2], axis=1)
    return features, features @ TRUE * np.exp(rng.normal(0, noise, count))


def worst_error(found: tuple[float, ...]) -> float:
    tokens = np.array([16.0, 128, 1024, 8192, 32_000])
    features = np.stack([np.ones(5), tokens, tokens**2], axis=1)
    return float(np.max(np.abs(features @ np.array(found) / (features @ TRUE) - 1)))


def test_without_samples_the_prior_holds() -> None:
    assert fit_relative(np.empty((0, 3)), np.empty(0), PRIOR) == PRIOR


def test_exact_samples_give_the_coefficients() -> None:
    features, seconds = prefill_samples(100, noise=0.0)
    assert worst_error(fit_relative(features, seconds, PRIOR)) < 0.02


def test_noisy_samples_give_times_within_a_few_percent() -> None:
    features, seconds = prefill_samples(300, noise=0.15)
    assert worst_error(fit_relative(features, seconds, PRIOR)) < 0.08


@pytest.mark.parametrize("factor", [50.0, 0.02])
def test_a_fifth_of_outliers_changes_little(factor: float) -> None:
    features, seconds = prefill_samples(300, noise=0.05)
    seconds[::5] *= factor
    assert worst_error(fit_relative(features, seconds, PRIOR)) < 0.10
    plain = np.linalg.lstsq(features / seconds[:, None], np.ones(300), rcond=None)[0]
    if factor < 1:
        assert worst_error(tuple(plain)) > 0.5, "least squares without Huber's loss would have done"


def test_a_few_samples_rescale_a_prior_that_is_wrong_by_a_factor() -> None:
    features, seconds = prefill_samples(6, noise=0.0, seed=3)
    found = fit_relative(features, 100 * seconds, tuple(TRUE))
    assert worst_error(tuple(np.array(found) / 100)) < 0.2


def test_terms_that_samples_do_not_vary_keep_the_priors_shape() -> None:
    tokens = np.full(200, 1000.0)
    features = np.stack([np.ones(200), tokens, tokens**2], axis=1)
    found = np.array(fit_relative(features, 3 * (features @ TRUE), tuple(TRUE)))
    assert np.allclose(found, 3 * TRUE, rtol=0.05)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(1, 1e5), st.floats(1e-6, 1e4)), min_size=1, max_size=40),
    st.tuples(st.floats(1e-9, 1), st.floats(0, 1e-2), st.floats(0, 1e-6)),
)
def test_whatever_the_samples_no_coefficient_is_negative_or_not_finite(
    samples: list[tuple[float, float]], prior: tuple[float, float, float]
) -> None:
    tokens, seconds = (np.array(column) for column in zip(*samples, strict=True))
    found = fit_relative(np.stack([np.ones(len(tokens)), tokens, tokens**2], axis=1), seconds, prior)
    assert all(np.isfinite(value) and value >= 0 for value in found)


def test_a_decreasing_time_gives_a_constant_not_a_negative_slope() -> None:
    tokens = np.linspace(1, 100, 50)
    features = np.stack([np.ones(50), tokens, tokens**2], axis=1)
    found = fit_relative(features, 2.0 - tokens / 100, (1.0, 1e-3, 1e-6))
    assert found[1] < 1e-3
    assert found[2] < 1e-5
    assert 0.8 < found[0] < 2.0


def test_a_changed_worker_is_followed_within_a_window() -> None:
    fitted = FittedTime((0.01, 1e-4), window=64, refit_every=16)
    rng = np.random.default_rng(1)
    for speed in (1.0, 4.0):
        for size in rng.uniform(10, 1000, 128):
            fitted.observe((1, size), speed * (0.01 + 1e-4 * size))
        assert fitted.predict((1, 500)) == pytest.approx(speed * 0.06, rel=0.05)


@pytest.mark.parametrize("prior", [(0.0, 0.0), (1.0, -1.0)])
def test_a_prior_that_says_nothing_is_refused(prior: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="positive coefficient"):
        fit_relative(np.ones((1, 2)), np.ones(1), prior)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_measurement_is_counted_and_dropped(seconds: float) -> None:
    fitted = FittedTime((1.0, 1.0))
    fitted.observe((1, 5), seconds)
    fitted.observe((1, float("nan")), 1.0)
    assert (fitted.rejected, fitted.num_samples, fitted.errors.summary().count) == (2, 0, 0)
    assert fitted.coefficients == (1.0, 1.0)
