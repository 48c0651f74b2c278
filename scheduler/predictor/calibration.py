"""From a point estimate of the log length to its distribution: quantiles of the newest errors of jobs with similar estimates.

The errors are those made before the job was learned from, so the quantiles cover what they claim on traffic like the recent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import LEVELS, Floats, Prediction, State, checked

# Ours: half an octave per bin up to 2^16 tokens; quantiles of the newest half of a bin's errors (the oldest are a beginner's), of RECENT
# at most and ENOUGH at least (bins next to it lend).
BINS = 32
BIN_WIDTH = 0.5 * math.log(2)
RECENT = 256
ENOUGH = 64


class Calibration:
    """Errors are log actual - log estimate. An estimate's quantiles are interpolated between the two nearest bins."""

    def __init__(self) -> None:
        self.added = np.zeros(BINS, np.int64)
        self._errors = np.zeros((BINS, RECENT), np.float64)
        self._table = np.zeros(
            (BINS, len(LEVELS) + 1), np.float64
        )  # quantiles of the error, log of the mean of its exp

    def __bool__(self) -> bool:
        return bool(self.added.any())

    @property
    def ready(self) -> bool:
        """Whether it has enough errors to be believed where another one would do."""
        return int(self.added.sum()) >= ENOUGH

    def add(self, estimates: Floats, errors: Floats) -> None:
        """estimates, errors: [jobs]"""
        for number, error in zip(_bin_numbers(estimates), errors, strict=True):
            self._errors[number, self.added[number] % RECENT] = error
            self.added[number] += 1
        self._refresh()

    def prediction(self, estimate: float, max_tokens: int, source: str) -> Prediction:
        """The distribution around `estimate`, a log length, within 1 to max_tokens; ignorant before the first error."""
        if not self:
            return Prediction.ignorant(max_tokens)
        *lengths, mean = np.clip(self._row(estimate), 1.0, max_tokens).tolist()
        return Prediction(tuple(lengths), mean, -estimate, source)

    def mean(self, estimate: float, max_tokens: int) -> float:
        """The mean of the distribution around `estimate`, within 1 to max_tokens; there must be an error to know it by."""
        return min(max(float(self._row(estimate)[-1]), 1.0), float(max_tokens))

    def _row(self, estimate: float) -> Floats:
        """[LEVELS, and the mean] tokens"""
        place = min(max(estimate / BIN_WIDTH - 0.5, 0.0), BINS - 1.0)
        low = min(int(place), BINS - 2)
        share = place - low
        table = self._table
        row: Floats = np.exp(np.minimum(estimate + (1 - share) * table[low] + share * table[low + 1], 20.0))
        return row

    def _refresh(self) -> None:
        counts = np.minimum(np.maximum((self.added + 1) // 2, np.minimum(self.added, ENOUGH)), RECENT)
        total = int(counts.sum())
        table = np.empty_like(self._table)
        for number in range(BINS):
            if counts[number]:
                errors = self._near(number, counts, min(ENOUGH, total))
                table[number] = *np.quantile(errors, LEVELS), math.log(float(np.exp(errors).mean()))
            else:
                table[number] = np.nan
        self._table = _filled(table)

    def _near(self, number: int, counts: npt.NDArray[np.int64], enough: int) -> Floats:
        """The errors of bin `number` and of as many bins around it as it takes to have `enough`."""
        reach, low, high = 0, number, number + 1
        while counts[low:high].sum() < enough:
            reach += 1
            low, high = max(number - reach, 0), min(number + reach + 1, BINS)
        return np.concatenate([self._newest(i, int(counts[i])) for i in range(low, high)])

    def _newest(self, number: int, count: int) -> Floats:
        errors: Floats = self._errors[number, (self.added[number] - 1 - np.arange(count)) % RECENT]
        return errors

    def state(self) -> State:
        return {"added": self.added, "errors": self._errors}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        self.added = checked(state, "added", self.added)
        self._errors = checked(state, "errors", self._errors)
        if self:
            self._refresh()


def _bin_numbers(estimates: Floats) -> npt.NDArray[np.int64]:
    return np.clip(estimates / BIN_WIDTH, 0, BINS - 1).astype(np.int64)


def _filled(table: Floats) -> Floats:
    """Rows of NaN become those of the nearest row that is not."""
    known = np.flatnonzero(~np.isnan(table[:, 0]))
    nearest = known[np.abs(np.arange(len(table))[:, None] - known).argmin(axis=1)]
    filled: Floats = table[nearest]
    return filled
