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


class FittedTime:
    """Starts from `prior` (one coefficient per term, seconds per unit of the term) and fits the newest `window` samples.

    Refits after 1, 2, 4, ... samples and then every `refit_every`; a refit takes well under a millisecond. Predictions are made
    with plain floats, for the placement's inner loop.
    """

    def __init__(
        self,
        prior: Sequence[float],
        *,
        window: int = WINDOW,
        refit_every: int = REFIT_EVERY,
        prior_weight: float = 1.0,
    ) -> None:
        self.prior = tuple(float(value) for value in prior)
        self.coefficients = self.prior
        self.errors = ErrorWindow()
        self.rejected = 0
        self._samples: deque[tuple[tuple[float, ...], float]] = deque(maxlen=window)
        self._refit_every = refit_every
        self._prior_weight = prior_weight
        self._seen = 0

    @property
    def num_samples(self) -> int:
        """Samples that the coefficients are fitted to, at the next refit."""
        return len(self._samples)

    def predict(self, terms: Sequence[float]) -> float:
        """Seconds."""
        return sum(coefficient * term for coefficient, term in zip(self.coefficients, terms, strict=True))

    def observe(self, terms: Sequence[float], seconds: float) -> None:
        """A measured time. Times and terms that are no positive, finite measurement are counted in `rejected` and dropped."""
        if not (math.isfinite(seconds) and seconds > 0 and all(math.isfinite(term) and term >= 0 for term in terms)):
            self.rejected += 1
            return
        self.errors.add(self.predict(terms), seconds)
        self._samples.append((tuple(float(term) for term in terms), seconds))
        self._seen += 1
        power_of_two = self._seen & (self._seen - 1) == 0
        if self._seen % self._refit_every == 0 or (power_of_two and self._seen < self._refit_every):
            self.refit()

    def refit(self) -> None:
        """Fits the coefficients to the samples now."""
        if self._samples:
            terms, seconds = zip(*self._samples, strict=True)
            self.coefficients = fit_relative(np.array(terms), np.array(seconds), self.prior, self._prior_weight)
