"""TRAIL's refinement while decoding (Shahout et al., arXiv 2410.01035): belief over bins of the tokens that remain.

Each token moves belief one bin down with chance 1 / bin width (the transition T; k tokens at once are T^k), and a score from the
model's hidden states, where the worker sends one, multiplies it. Ours: the first belief is the predictor's distribution, not a
classifier's; before a score counts, DOUBT of the belief is spread over all bins, so that a job that was believed short can still turn
out long; and by option that the job still runs is evidence, since one in the lowest bin would end with each token by that chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .base import LEVELS, Floats

BINS = 10  # the paper's, over 0 to 512
DOUBT = 0.01


class Lengths(Protocol):
    """A distribution of output lengths: a Prediction or a Forecast."""

    def quantile(self, level: float, /) -> float: ...


class Refiner:
    """The belief of one job. `generated` counts its tokens so far; bins are equal parts of 0 to `span_tokens` (None: `max_tokens`).

    Where the span is less than `max_tokens`, the last bin also stands for all beyond, and estimates do not exceed the span.
    """

    def __init__(
        self,
        prediction: Lengths,
        max_tokens: int,
        bins: int = BINS,
        survival: bool = False,
        span_tokens: int | None = None,
    ) -> None:
        span = max_tokens if span_tokens is None else span_tokens
        if max_tokens < 1 or bins < 1 or span < 1:
            raise ValueError(f"max_tokens={max_tokens}, bins={bins} and span_tokens={span} must be at least 1")
        self.max_tokens = max_tokens
        self.width = span / bins
        self.generated = 0
        self._survival = survival
        self.belief = prior(prediction, span, bins)

    def update(self, generated: int, score: Sequence[float] | None = None) -> bool:
        """The job has `generated` tokens. `score`: a probability for each bin of what remains, from the newest hidden state.

        Returns False, and leaves a score out, where it is not finite, negative, or denies all that is believed. Raises ValueError
        where it has another number of bins or time runs backwards.
        """
        steps = generated - self.generated
        if steps < 0:
            raise ValueError(f"generated={generated} after {self.generated}")
        if score is not None and len(score) != len(self.belief):
            raise ValueError(f"a score of {len(score)} bins for a belief of {len(self.belief)}")
        if steps:
            self.generated = generated
            self._take(self.belief @ transition(len(self.belief), self.width, steps, self._survival))
        if score is None:
            return True
        weights = np.asarray(score, np.float64)
        doubted = (1 - DOUBT) * self.belief + DOUBT / len(self.belief)
        return bool(np.isfinite(weights).all() and (weights >= 0).all()) and self._take(doubted * weights)

    def _take(self, belief: Floats) -> bool:
        total = float(belief.sum())
        if not total > 0 or not math.isfinite(total):
            return False
        self.belief = belief / total
        return True

    @property
    def remaining(self) -> float:
        """Expected tokens to come: the bins' middles by belief, within 1 and what max_tokens leaves."""
        middles = (np.arange(len(self.belief)) + 0.5) * self.width
        return min(max(float(self.belief @ middles), 1.0), max(self.max_tokens - self.generated, 1.0))

    def quantile(self, level: float) -> float:
        """The tokens to come that are not exceeded with probability `level`, as if spread evenly within a bin."""
        ends = np.cumsum(self.belief)
        number = min(int(np.searchsorted(ends, level)), len(ends) - 1)
        share = 1 - (ends[number] - level) / max(float(self.belief[number]), 1e-12)
        most = max(self.max_tokens - self.generated, 1.0)
        return min(max(float(number + min(max(share, 0.0), 1.0)) * self.width, 1.0), most)


def prior(prediction: Lengths, span_tokens: int, bins: int) -> Floats:
    """[bins] the prediction's distribution; what it leaves open below and above its quantiles goes to the bins at its ends."""
    edges = np.linspace(0, span_tokens, bins + 1)
    lengths = np.array([prediction.quantile(level) for level in LEVELS])
    lengths = np.maximum.accumulate(lengths + np.arange(len(LEVELS)) * 1e-9)
    below = np.interp(edges, lengths, LEVELS, left=0.0, right=1.0)
    below[0], below[-1] = 0.0, 1.0
    return np.diff(below)


@lru_cache(maxsize=1024)
def transition(bins: int, width: float, steps: int, survival: bool) -> npt.NDArray[np.float64]:
    """[from, to] T^steps: stay with 1 - 1/width, else one bin down. Bin 0 absorbs, or is left by ending where `survival`."""
    leave = min(1 / width, 1.0)
    one = np.diag(np.full(bins, 1 - leave)) + np.diag(np.full(bins - 1, leave), -1)
    if not survival:
        one[0, 0] = 1.0
    return np.linalg.matrix_power(one, steps)
