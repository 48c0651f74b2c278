"""The transfer time of one link, a + b * bytes, kept up to date sample by sample: a fleet has as many links as pairs of workers.

Recursive least squares on relative error with forgetting, after the textbook form (Ljung 1999, ch. 11): the information of all samples
is two by two numbers, so a sample costs about a microsecond and a link a few hundred bytes, whatever was sent over it. As in `fit_relative`
outliers are bounded by Huber's loss, no coefficient is negative, and what a link starts from is scaled to its samples: a belief that is
wrong by a factor still tells latency from bandwidth. The constants are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .fit import HUBER

FORGET = 1 - 1 / 64  # of the weight of all samples, at each new one
_PRIOR_SPREAD = 1.0  # relative standard deviation of the coefficients that a link starts from
_SCALE_SAMPLES = 64
_LEAST_NOISE = 0.01  # relative; differences below are those of the clock
_FIRST_NOISE = 0.5
_NOISE_RATE = 0.2  # of the newest error in the running noise
_SURPRISE = 3.0  # an error above this many times the noise is a surprise, and counts for the noise as no more
_CHANGE = 4  # surprises in a row: the link is another one now, and what was sent before says nothing of it


class LinkTime:
    """Starts from `coefficients` (seconds, seconds per byte; at least one positive) and follows its samples."""

    __slots__ = (
        "_centre", "_count", "_information", "_log_scale", "_noise", "_surprises", "_target", "coefficients"
    )  # fmt: skip

    def __init__(self, coefficients: Sequence[float]) -> None:
        self._start(coefficients)

    def _start(self, coefficients: Sequence[float]) -> None:
        a, b = coefficients
        self.coefficients: tuple[float, float] = (a, b)
        self._centre = self.coefficients  # the unit of both coefficients below, so that they are near 1
        self._information = (0.0, 0.0, 0.0)  # sums of w x0 x0, w x0 x1, w x1 x1 over the samples
        self._target = (0.0, 0.0)
        self._noise = _FIRST_NOISE
        self._surprises = self._count = 0
        self._log_scale = 0.0  # mean log of actual / predicted by the centre, which counts as one sample of 0

    def predict(self, num_bytes: int) -> float:
        """Seconds."""
        a, b = self.coefficients
        return a + b * num_bytes

    def observe(self, num_bytes: int, seconds: float) -> None:
        """A measured transfer, of a positive and finite time."""
        self._rescale(num_bytes, seconds)
        predicted = self.predict(num_bytes) / seconds
        larger = max(1.0, predicted)
        error = abs(predicted - 1.0) / larger
        self._add(num_bytes, seconds, min(1.0, HUBER * self._noise / max(error, 1e-12)) / larger**2)
        self._surprises = self._surprises + 1 if error > _SURPRISE * self._noise else 0
        self._noise += _NOISE_RATE * (min(error, _SURPRISE * self._noise) - self._noise)
        self._noise = max(_LEAST_NOISE, self._noise)
        self._solve()
        if self._surprises == _CHANGE:
            self._start(self.coefficients)

    def _add(self, num_bytes: int, seconds: float, weight: float) -> None:
        x0, x1 = self._centre[0] / seconds, self._centre[1] * num_bytes / seconds
        n00, n01, n11 = self._information
        t0, t1 = self._target
        self._information = (
            FORGET * n00 + weight * x0 * x0, FORGET * n01 + weight * x0 * x1, FORGET * n11 + weight * x1 * x1
        )  # fmt: skip
        self._target = FORGET * t0 + weight * x0, FORGET * t1 + weight * x1

    def _rescale(self, num_bytes: int, seconds: float) -> None:
        self._count = min(self._count + 1, _SCALE_SAMPLES)
        ratio = seconds / (self._centre[0] + self._centre[1] * num_bytes)
        self._log_scale += (math.log(ratio) - self._log_scale) / (self._count + 1)

    def _solve(self) -> None:
        """The minimum of the weighted squares with the prior's pull, with no coefficient below 0."""
        scale = math.exp(self._log_scale)
        pull = (self._noise / (_PRIOR_SPREAD * scale)) ** 2
        n00, n01, n11 = self._information
        n00, n11 = n00 + pull, n11 + pull
        t0, t1 = self._target[0] + pull * scale, self._target[1] + pull * scale
        determinant = n00 * n11 - n01 * n01
        first, second = (t0 * n11 - t1 * n01) / determinant, (t1 * n00 - t0 * n01) / determinant
        if first < 0:
            first, second = 0.0, t1 / n11
        elif second < 0:
            first, second = t0 / n00, 0.0
        self.coefficients = first * self._centre[0], second * self._centre[1]
