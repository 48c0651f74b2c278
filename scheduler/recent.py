"""The lengths of jobs that ended lately, as a forecast for any job: what is left to go by where predictions are not worth following."""

from __future__ import annotations

from collections import deque
from statistics import quantiles

from scheduler.forecast import LEVELS, Forecast

WINDOW = 256
REFRESH_EVERY = 32
_PARTS = 20  # twentieths: every level of a forecast is a whole number of them


class RecentLengths:
    """Quantiles of the newest WINDOW lengths, taken anew after every REFRESH_EVERY (both ours). The limit until there are so many."""

    def __init__(self) -> None:
        self._tokens: deque[int] = deque(maxlen=WINDOW)
        self._added = 0
        self._quantiles: tuple[float, ...] = ()

    def add(self, tokens: int) -> bool:
        """A job has ended after `tokens`. Returns whether forecasts are others now."""
        self._tokens.append(tokens)
        self._added += 1
        if self._added % REFRESH_EVERY:
            return False
        cuts = quantiles(self._tokens, n=_PARTS, method="inclusive")
        self._quantiles = tuple(cuts[round(level * _PARTS) - 1] for level in LEVELS)
        return True

    def forecast(self, max_tokens: int) -> Forecast:
        return Forecast.made(self._quantiles, max_tokens) if self._quantiles else Forecast.unknown(max_tokens)
