"""Makes any predictor safe to follow: finite, ordered, within 1 and max_tokens, whatever it does. How wrong it is, is not judged here."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from packhorse.errors import PackhorseError

from .base import JobFeatures, Observation, Prediction, Predictor, State
from .percentile import Percentile

log = logging.getLogger(__name__)


class Guarded(Predictor):
    """`inner`, with recent traffic's quantiles in its place where it fails or says what is no number.

    It may fail with anything: a sentence model brings the faults of torch along. Only what Packhorse itself raises is a mistake of the
    caller's, and passes. `replaced` and `clamped` count predictions, `failed` batches that could not be learned from.
    """

    def __init__(self, inner: Predictor) -> None:
        super().__init__()
        self.inner = inner
        self.fallback = Percentile()
        self.replaced = self.clamped = self.failed = 0

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.inner.name

    def predict(self, job: JobFeatures) -> Prediction:
        try:
            said = self.inner.predict(job)
        except PackhorseError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, jobs go on
            return self._instead(job, repr(error))
        if all(map(math.isfinite, (said.score, said.mean, *said.lengths))):
            return self._within(said, job.max_tokens)
        return self._instead(job, f"no number in {said}")

    def _instead(self, job: JobFeatures, why: str) -> Prediction:
        self._complain("predict", why)
        self.replaced += 1
        return self.fallback.predict(job)

    def _within(self, said: Prediction, max_tokens: int) -> Prediction:
        lengths = tuple(sorted(min(max(length, 1.0), float(max_tokens)) for length in said.lengths))
        mean = min(max(said.mean, lengths[0]), lengths[-1]) if not 1 <= said.mean <= max_tokens else said.mean
        if lengths == said.lengths and mean == said.mean:
            return said
        self.clamped += 1
        return Prediction(lengths, mean, said.score, said.source)

    def learn_batch(self, batch: Sequence[Observation]) -> None:
        self.fallback.learn_batch(batch)
        try:
            self.inner.learn_batch(batch)
        except PackhorseError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, jobs go on
            self._complain("learn", repr(error))
            self.failed += 1

    def _complain(self, what: str, why: str) -> None:
        """Once: what fails for one job does for many."""
        if not self.replaced + self.failed:
            log.error("predictor %s cannot %s; recent traffic stands in: %s", self.name, what, why)

    def state(self) -> State:
        return self.inner.state()

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        self.inner.restore(state)
