"""What is believed of a job's output length: a few quantiles and a ranking score, made safe to compute with.

Predictors may be wrong in any way, NaN and negative numbers included; a Forecast is finite, ordered and within the job's
limits whatever it was made from. Knows nothing of predictors, policies or time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
_TAIL = 2.0  # the longest output that is believed possible, in units of the highest quantile; ours
_REMEMBERED = 1 << 15  # answers: plans ask again of jobs that have made no progress


class LengthPrediction(Protocol):
    """What is asked of a predictor's answer: tokens of output at level 0 < p < 1, in the mean, and a score (higher is shorter)."""

    def quantile(self, p: float) -> float: ...

    @property
    def mean(self) -> float: ...

    @property
    def score(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Forecast:
    """`tokens` are the output lengths at LEVELS, non-decreasing, each in 1..`max_tokens`; `score` is higher for shorter jobs.

    `least` is what the output cannot fall short of: more than 1 where the forecast was made of a job that runs. `expected` is the mean,
    where it is predicted apart from the quantiles, which tell little of it; then it is what Gittins' index is about.
    """

    tokens: tuple[float, ...]
    max_tokens: int
    score: float = 0.0
    least: float = 1.0
    expected: float | None = None

    @classmethod
    def unknown(cls, max_tokens: int) -> Forecast:
        """Nothing is known but the job's limit."""
        return cls((float(max_tokens),) * len(LEVELS), max_tokens)

    @classmethod
    def of(cls, prediction: LengthPrediction, max_tokens: int) -> Forecast:
        """A mean that is none of such quantiles, which no distribution has, does not count."""
        made = cls.made([prediction.quantile(level) for level in LEVELS], max_tokens, prediction.score)
        possible = made.tokens[0] <= prediction.mean <= made._longest()
        return replace(made, expected=prediction.mean) if possible else made

    @classmethod
    def made(cls, tokens: Sequence[float], max_tokens: int, score: float = math.nan, least: float = 1.0) -> Forecast:
        """From lengths at LEVELS. What is no finite number counts as `max_tokens`; a score that is none, as minus the median."""
        safe = [min(max(float(n), 1.0), float(max_tokens)) if math.isfinite(n) else float(max_tokens) for n in tokens]
        for i in range(1, len(safe)):
            safe[i] = max(safe[i], safe[i - 1])
        order = float(score) if math.isfinite(score) else -safe[len(safe) // 2]
        return cls(tuple(safe), max_tokens, order, min(max(least, 1.0), safe[0]))

    @classmethod
    def exact(cls, output_tokens: int, max_tokens: int) -> Forecast:
        """The length is known."""
        return cls.made([output_tokens] * len(LEVELS), max_tokens, -float(output_tokens))

    @property
    def mean(self) -> float:
        """Output tokens in the mean, nearly: of LEVELS, which stand for equal shares but for the tails."""
        return sum(self.tokens) / len(self.tokens)

    def quantile(self, p: float) -> float:
        """Output tokens in all, linear between LEVELS, from `least` at level 0 to twice the highest of them at level 1."""
        if p in LEVELS:
            return self.tokens[LEVELS.index(p)]
        for (level, tokens), (higher, more) in pairwise(self.points()):
            if p <= higher:
                return min(tokens + (more - tokens) * (p - level) / (higher - level), self.max_tokens)
        return self._longest()

    def remaining(self, p: float, generated: int) -> float:
        """Tokens still to come, at level p of those outputs that are longer than `generated`; at least 1.

        A job that outlives every belief is taken to have as much before it as half of what it has generated.
        """
        most = max(1.0, float(self.max_tokens - generated))
        if self._exact and generated < self.tokens[0]:
            return min(max(1.0, self.tokens[0] - generated), most)
        if generated <= 0:
            return min(self.quantile(p), most)
        if generated >= self._longest():
            return min(max(1.0, generated / 2), most)
        return min(max(1.0, _conditioned(self, p, generated) - generated), most)

    def given(self, generated: int) -> tuple[float, ...]:
        """Output lengths at LEVELS, of those that are longer than `generated`."""
        return tuple(min(generated + self.remaining(level, generated), float(self.max_tokens)) for level in LEVELS)

    def gittins(self, generated: int) -> float:
        """Gittins' index of the job in tokens: the least, over all times to give up, of expected service per chance to end by then.

        Serving the smallest index first is optimal in the mean for one server and known distributions (Gittins 1979). It is what
        is left where the length is known, more where it is uncertain, and rises when a job outlives its likely lengths.
        """
        most = max(1.0, float(self.max_tokens - generated))
        belief = self if self.expected is None else _around_mean(self)
        if belief._exact or generated >= belief._longest():
            return belief.remaining(0.5, generated)
        return min(max(1.0, _gittins(belief, generated)), most)

    def share_below(self, tokens: float) -> float:
        """The level at which the quantile reaches `tokens`."""
        for (level, fewer), (higher, more) in pairwise(self.points()):
            if tokens <= fewer:
                return level
            if tokens < more:
                return level + (higher - level) * (tokens - fewer) / (more - fewer)
        return 1.0

    def _longest(self) -> float:
        return min(self.tokens[-1] if self._exact else _TAIL * self.tokens[-1], float(self.max_tokens))

    @property
    def _exact(self) -> bool:
        return self.tokens[0] == self.tokens[-1]

    def points(self) -> tuple[tuple[float, float], ...]:
        """(level, tokens), both ascending, from level 0 to level 1."""
        lowest = self.tokens[0] if self._exact else self.least
        return ((0.0, lowest), *zip(LEVELS, self.tokens, strict=True), (1.0, self._longest()))


@lru_cache(_REMEMBERED)
def _conditioned(forecast: Forecast, p: float, generated: int) -> float:
    """The length at level p of those that are longer than `generated`."""
    passed = forecast.share_below(generated)
    return forecast.quantile(passed + p * (1.0 - passed))


@lru_cache(_REMEMBERED)
def _around_mean(forecast: Forecast) -> Forecast:
    """The same distribution, stretched so that its mean is `expected`."""
    assert forecast.expected is not None
    stretch = forecast.expected / forecast.mean
    return Forecast.made([tokens * stretch for tokens in forecast.tokens], forecast.max_tokens, forecast.score)


@lru_cache(_REMEMBERED)
def _gittins(forecast: Forecast, generated: int) -> float:
    tokens, share = float(generated), forecast.share_below(generated)
    service, ended, best = 0.0, 0.0, math.inf
    for level, more in forecast.points():
        if more > tokens:
            service += (more - tokens) * (1.0 - (share + level) / 2)
        if more >= tokens and level > share:
            ended += level - share
            tokens, share = more, level
            best = min(best, service / ended)
    return best
