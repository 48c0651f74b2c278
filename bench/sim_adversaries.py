"""Predictors that nobody would ship: wrong on purpose, or right up to an error of known size. For the proofs of `bench proof`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from scheduler.predictor import JobFeatures, Prediction, Predictor
from scheduler.predictor.base import LEVELS, Observation
from scheduler.simulator import SimOracle

CONSTANT_TOKENS = 100.0
_NORMAL = (
    -1.6449,
    -1.2816,
    -0.6745,
    0.0,
    0.6745,
    1.2816,
    1.6449,
    2.3263,
)  # quantiles of the normal distribution at LEVELS


class _Unteachable(Predictor):
    def learn_batch(self, batch: Sequence[Observation]) -> None:
        """Learns nothing."""


class Reversed(_Unteachable):
    """Sure that the shortest job is the longest."""

    name = "reversed"

    def predict(self, job: JobFeatures) -> Prediction:
        return Prediction.certain(job.max_tokens + 1 - SimOracle().predict(job).mean, self.name)


class Constant(_Unteachable):
    """Sure that all jobs are alike."""

    name = "constant"

    def predict(self, job: JobFeatures) -> Prediction:
        return Prediction.certain(CONSTANT_TOKENS, self.name)


class NotANumber(_Unteachable):
    """Says NaN."""

    name = "nan"

    def predict(self, job: JobFeatures) -> Prediction:
        return Prediction((math.nan,) * len(LEVELS), math.nan, math.nan, self.name)


class Random(_Unteachable):
    """Sure of any length from 1 to max_tokens."""

    name = "random"

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = random.Random(f"random/{seed}")

    def predict(self, job: JobFeatures) -> Prediction:
        return Prediction.certain(self._rng.randint(1, job.max_tokens), self.name)


class Noisy(_Unteachable):
    """The true length times exp(sigma * z), z normal, and the log-normal distribution around that: it knows how wrong it may be."""

    def __init__(self, sigma: float, seed: int) -> None:
        super().__init__()
        self._sigma, self._rng = sigma, random.Random(f"noisy/{sigma}/{seed}")

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"sigma-{self._sigma:g}"

    def predict(self, job: JobFeatures) -> Prediction:
        median = SimOracle().predict(job).mean * math.exp(self._sigma * self._rng.gauss(0, 1))
        lengths = tuple(median * math.exp(self._sigma * z) for z in _NORMAL)
        return Prediction(lengths, median * math.exp(self._sigma**2 / 2), -math.log(median), self.name)


ADVERSARIES: dict[str, Callable[[int], Predictor]] = {
    "reversed": lambda seed: Reversed(),
    "constant": lambda seed: Constant(),
    "nan": lambda seed: NotANumber(),
    "random": Random,
}


def made_up(name: str, seed: int) -> Predictor | None:
    """An adversary by name, or `sigma-<S>`; None for any other name."""
    if name.startswith("sigma-"):
        return Noisy(float(name.removeprefix("sigma-")), seed)
    maker = ADVERSARIES.get(name)
    return maker(seed) if maker is not None else None
