"""The lengths of recent traffic, whatever the job: what a predictor must beat, and what stands in where one fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import LEVELS, JobFeatures, Observation, Prediction, Predictor, State, checked, checked_counts

WINDOW = 2048  # newest jobs; ours


class Percentile(Predictor):
    """The quantiles of the last WINDOW jobs' lengths, the same for every job: it ranks nothing."""

    name = "percentile"

    def __init__(self) -> None:
        super().__init__()
        self._lengths = np.zeros(WINDOW, np.float64)
        self._added = 0
        self._table: tuple[float, ...] = ()  # quantiles at LEVELS, then the mean

    def predict(self, job: JobFeatures) -> Prediction:
        if not self._table:
            return Prediction.ignorant(job.max_tokens)
        *lengths, mean = (min(value, float(job.max_tokens)) for value in self._table)
        return Prediction(tuple(lengths), mean, 0.0, self.name)

    def learn_batch(self, batch: Sequence[Observation]) -> None:
        slots = (self._added + np.arange(len(batch))) % WINDOW
        self._lengths[slots] = [max(seen.tokens, 1) for seen in batch]
        self._added += len(batch)
        self._summarize()

    def _summarize(self) -> None:
        lengths = self._lengths[: min(self._added, WINDOW)]
        self._table = (*np.quantile(lengths, LEVELS).tolist(), float(lengths.mean()))

    def state(self) -> State:
        return {"lengths": self._lengths, "added": np.array([self._added])}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        self._lengths = checked(state, "lengths", self._lengths)
        (self._added,) = checked_counts(state, "added", 1)
        if self._added:
            self._summarize()
