"""Traffic whose lengths are known by construction, and predictors that are wrong on purpose."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from scheduler.predictor.base import LEVELS, JobFeatures, Observation, Prediction, Predictor
from scheduler.predictor.embedding import SentenceModel


def made_traffic(count: int, seed: int, topics: int = 20) -> tuple[list[JobFeatures], list[int]]:
    """Prompts that open with one of `topics` words and go on at random; the word alone decides the length, up to noise."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(topics, size=count)
    lengths = np.exp(2 + 4 * topic / topics + 0.2 * rng.standard_normal(count)).astype(int) + 1
    jobs = [JobFeatures((int(t), *rng.integers(1000, 5000, size=6).tolist()), 2048) for t in topic]
    return jobs, lengths.tolist()


def teach(predictor: Predictor, jobs: Sequence[JobFeatures], lengths: Sequence[int]) -> None:
    for job, length in zip(jobs, lengths, strict=True):
        predictor.observe(job, length)
        if predictor.pending >= 1024:
            predictor.learn()
    predictor.learn()


class Fake(Predictor):
    """Says what it was given, learns nothing, and remembers what it was told."""

    name = "fake"

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Observation] = []

    def learn_batch(self, batch: Sequence[Observation]) -> None:
        self.told += batch


class Constant(Fake):
    """One length for every job."""

    def __init__(self, tokens: float) -> None:
        super().__init__()
        self.tokens = tokens

    def predict(self, job: JobFeatures) -> Prediction:
        return Prediction((self.tokens,) * len(LEVELS), self.tokens, 0.0, self.name)


class NotANumber(Constant):
    def __init__(self) -> None:
        super().__init__(math.nan)


class Reversed(Fake):
    """Long where jobs are short and the other way round: reads the truth and turns it."""

    def predict(self, job: JobFeatures) -> Prediction:
        assert job.actual_tokens is not None
        return Prediction.certain(job.max_tokens + 1 - job.actual_tokens, self.name)


class Raising(Fake):
    """Fails in both directions."""

    def predict(self, job: JobFeatures) -> Prediction:
        raise ValueError("no idea")

    def learn_batch(self, batch: Sequence[Observation]) -> None:
        raise ZeroDivisionError("nothing to learn")


class Words(SentenceModel):
    """Embeds the first token alone."""

    dims = 16

    def __init__(self, name: str = "words") -> None:
        self.name, self._decode = name, None

    def vectors(self, jobs):  # type: ignore[no-untyped-def]
        return np.stack([np.random.default_rng(job.prompt[0]).standard_normal(16) for job in jobs]).astype(np.float32)
