"""Least squares on relative error with Huber's loss, coefficients that cannot be negative, and a pull towards a prior.

Minimizes over c >= 0:   sum_i huber((x_i . c - y_i) / y_i)  +  prior_weight * sum_k ((c_k - p_k) / s_k)^2

p is the prior, scaled to the samples by the median of y_i / (x_i . prior): a prior that is wrong by a factor on all terms (other
efficiency, a slower back end) still gives its shape. s_k is p_k, or a tenth of the typical time where that term is smaller.
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
_LEAST_SIGMA = 0.01  # relative; below it differences are measurement noise
_ROUNDS = 25
_CONVERGED = 1e-4


def fit_relative(
    features: Array, seconds: Array, prior: Sequence[float], prior_weight: float = 1.0
) -> tuple[float, ...]:
    """The coefficients, one per column of `features` [samples, terms]; `seconds` [samples], all positive.

    `prior_weight` counts as that many samples. Without samples: the prior itself.
    """
    given = np.asarray(prior, dtype=np.float64)
    if not len(seconds):
        return tuple(given.tolist())
    rows = features / seconds[:, None]
    centre = given * _scale(rows @ given, prior_weight)
    spread = np.maximum(centre, 0.1 / np.maximum(np.median(rows, axis=0), 1e-300))
    coefficients = centre
    for _ in range(_ROUNDS):
        weights = _huber_weights(rows @ coefficients - 1.0)
        found = _non_negative(rows, weights, centre, prior_weight / spread**2)
        moved = float(np.max(np.abs(found - coefficients) / spread))
        coefficients = found
        if moved < _CONVERGED:
            break
    return tuple(coefficients.tolist())


def _scale(ratios: Array, prior_weight: float) -> float:
    """The factor on the prior: the median of actual / predicted; with few samples drawn towards 1 (geometrically)."""
    factor = 1.0 / float(np.median(ratios)) if float(np.median(ratios)) > 0 else 1.0
    count = len(ratios)
    return float(factor ** (count / (count + prior_weight)))


def _huber_weights(residuals: Array) -> Array:
    """One for residuals within the threshold, threshold / |residual| beyond."""
    sigma = max(_LEAST_SIGMA, _MAD_TO_SIGMA * float(np.median(np.abs(residuals))))
    return np.minimum(1.0, HUBER * sigma / np.maximum(np.abs(residuals), 1e-300))


def _non_negative(rows: Array, weights: Array, centre: Array, pull: Array) -> Array:
    """The minimum of the weighted squares with no coefficient below 0, by trying which of them are 0 (few terms)."""
    weighted = rows * weights[:, None]
    matrix = rows.T @ weighted + np.diag(pull)
    target = weighted.sum(axis=0) + pull * centre
    best = np.linalg.solve(matrix, target)
    if np.all(best >= 0):
        return best
    terms, lowest = len(centre), np.inf
    best = np.zeros(terms)
    for size in range(1, terms):
        for kept in combinations(range(terms), size):
            part = np.ix_(kept, kept)
            found = np.linalg.solve(matrix[part], target[list(kept)])
            loss = float(found @ matrix[part] @ found - 2 * target[list(kept)] @ found)
            if np.all(found >= 0) and loss < lowest:
                lowest = loss
                best = np.zeros(terms)
                best[list(kept)] = found
    return best
