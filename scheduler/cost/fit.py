"""Least squares on relative error with Huber's loss, coefficients that cannot be negative, and a pull towards a prior.

Minimizes over c >= 0:   sum_i huber((x_i . c - y_i) / m_i)  +  prior_weight * noise^2 * sum_k ((c_k - p_k) / s_k)^2

m_i is the larger of y_i and its prediction, so that a time that is far too short weighs no more than one that is far too long.
p is the prior, scaled to the samples by the median of y_i / (x_i . prior): a prior that is wrong by a factor on all terms (other
efficiency, a slower back end) still gives its shape. s_k is p_k, or a tenth of the typical time where that term is smaller; noise
is the residuals' robust standard deviation, so that a term which the samples determine is theirs and any other the prior's.
Relative error after DistServe's fit, so that short times count as much as long ones; the pull, the non-negativity and Huber's
threshold (1.345 robust standard deviations, for 95 % efficiency under normal noise) are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
HUBER = 1.345
_MAD_TO_SIGMA = 1.4826
_LEAST_NOISE = 0.01  # relative; differences below are those of the clock
_DOUBT = 0.3  # noise that is assumed of a single sample; falls with their number
_LEAST_SHARE = 0.1
_ROUNDS = 25
_CONVERGED = 1e-4


def fit_relative(
    features: Array, seconds: Array, prior: Sequence[float], prior_weight: float = 1.0
) -> tuple[float, ...]:
    """The coefficients, one per column of `features` [samples, terms], all at least 0; `seconds` [samples], all positive.

    `prior_weight` counts as that many samples. Without samples: the prior itself. Raises ValueError for a prior with no positive
    or with a negative coefficient.
    """
    given = np.asarray(prior, dtype=np.float64)
    if not (np.all(given >= 0) and np.any(given > 0)):
        raise ValueError(f"the prior {tuple(prior)} must have a positive coefficient and no negative one")
    count = len(seconds)
    if not count:
        return tuple(given.tolist())
    rows = features / seconds[:, None]
    centre = given * _scale(rows @ given, prior_weight)
    spread = np.maximum(centre, _LEAST_SHARE / np.maximum(np.median(rows, axis=0), 1e-12))
    rows, centre = (
        rows * spread,
        centre / spread,
    )  # from here on coefficients are in units of their spread, times of their y
    coefficients = centre
    for _ in range(_ROUNDS):
        predicted = rows @ coefficients
        larger = np.maximum(1.0, predicted)
        errors = np.abs(predicted - 1.0) / larger
        noise = max(_LEAST_NOISE, _MAD_TO_SIGMA * _median(errors))
        weights = np.minimum(1.0, HUBER * noise / np.maximum(errors, 1e-12)) / larger**2
        found = _non_negative(rows, weights, centre, prior_weight * min(1.0, max(noise, _DOUBT / count)) ** 2)
        moved = float(np.abs(found - coefficients).max())
        coefficients = found
        if moved < _CONVERGED:
            break
    return tuple((coefficients * spread).tolist())


def _scale(ratios: Array, prior_weight: float) -> float:
    """The factor on the prior: the median of actual / predicted; with few samples drawn towards 1 (geometrically)."""
    median = _median(ratios)
    factor = 1.0 / median if 1e-9 < median < 1e9 else 1.0
    count = len(ratios)
    return float(factor ** (count / (count + prior_weight)))


def _median(values: Array) -> float:
    """The upper one of two in the middle; a fraction of np.median's time on a few values."""
    middle = len(values) // 2
    return float(np.partition(values, middle)[middle])


def _non_negative(rows: Array, weights: Array, centre: Array, pull: float) -> Array:
    """The minimum of the weighted squares with no coefficient below 0, by trying which of them are 0 (few terms)."""
    weighted = rows * weights[:, None]
    matrix = rows.T @ weighted
    matrix.flat[:: len(centre) + 1] += pull + 1e-12 * float(matrix.trace())
    target = weighted.sum(axis=0) + pull * centre
    best = np.linalg.solve(matrix, target)
    if best.min() >= 0:
        return best
    terms, lowest = len(centre), np.inf
    best = np.zeros(terms)
    for size in range(1, terms):
        for kept in map(list, combinations(range(terms), size)):
            part = matrix[np.ix_(kept, kept)]
            found = np.linalg.solve(part, target[kept])
            loss = float(found @ part @ found - 2 * target[kept] @ found)
            if np.all(found >= 0) and loss < lowest:
                lowest, best = loss, np.zeros(terms)
                best[kept] = found
    return best
