"""One predicted time: coefficients times features, refitted as samples come in, with the errors of its own predictions kept."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from .errors import ErrorWindow
from .fit import fit_relative

WINDOW = 512
REFIT_EVERY = 64
_ONE_SIDED = 0.25  # the share of samples on the rarer side below which a fit is taken to be off; 64 fair ones are so once in 30,000


class FittedTime:
    """Starts from `prior` (one coefficient per term, seconds per unit of the term) and fits the newest `window` samples.

    Refits after 1, 2, 4, ... samples up to `refit_every`, then once per window, and after any `refit_every` samples that nearly all
    lay on one side of their predictions: a fit that still holds is not made again. Predictions are made with plain floats, for the
    placement's inner loop.
    """

    def __init__(
        self,
        prior: Sequence[float],
        *,
        window: int = WINDOW,
        refit_every: int = REFIT_EVERY,
        prior_weight: float = 1.0,
        errors: ErrorWindow | None = None,
    ) -> None:
        self.prior = tuple(float(value) for value in prior)
        self.coefficients = self.prior
        self.errors = errors if errors is not None else ErrorWindow()  # given: those of all workers together
        self.rejected = 0
        self._samples: deque[tuple[tuple[float, ...], float]] = deque(maxlen=window)
        self._window, self._refit_every = window, refit_every
        self._prior_weight = prior_weight
        self._seen = 0
        self._longer = 0  # samples above their predictions, of those since the last multiple of refit_every

    @property
    def num_samples(self) -> int:
        """Samples that the coefficients are fitted to, at the next refit."""
        return len(self._samples)

    def predict(self, terms: Sequence[float]) -> float:
        """Seconds."""
        return sum(coefficient * term for coefficient, term in zip(self.coefficients, terms, strict=True))

    def observe(self, terms: Sequence[float], seconds: float, predicted: float | None = None) -> bool:
        """A measured time. Times and terms that are no positive, finite measurement are counted in `rejected` and dropped: False.

        `predicted` is what was believed of it where that was not this object's prediction, for the errors.
        """
        if not (0 < seconds < math.inf and min(terms) >= 0 and sum(terms) < math.inf):
            self.rejected += 1
            return False
        own = self.predict(terms)
        self.errors.add(own if predicted is None else predicted, seconds)
        self._samples.append((tuple(terms), seconds))
        self._seen += 1
        self._longer += seconds > own
        if self._is_due():
            self.refit()
        return True

    def _is_due(self) -> bool:
        if self._seen < self._refit_every:
            return self._seen & (self._seen - 1) == 0
        if self._seen % self._refit_every:
            return False
        share, self._longer = self._longer / self._refit_every, 0
        one_sided = min(share, 1.0 - share) < _ONE_SIDED
        return one_sided or self._seen == self._refit_every or self._seen % self._window == 0

    def refit(self) -> None:
        """Fits the coefficients to the samples now."""
        if self._samples:
            terms, seconds = zip(*self._samples, strict=True)
            self.coefficients = fit_relative(
                np.array(terms, dtype=np.float64), np.array(seconds), self.prior, self._prior_weight
            )
