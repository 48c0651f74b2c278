"""The default predictor, ours: linear models and retrieved neighbours as measurements of one log length, calibrated quantiles, and a mean.

The regressor, which learns at once, and the ridge regression on roots, which learns better, are averaged, and count like PRIOR_WEIGHT
neighbours; a neighbour counts the more, the nearer it is. So a prompt that was seen before is predicted by what it came to, and a new
one by the models with a little help. Quantiles come from the newest errors of exactly this. The mean is predicted apart, by ridge
regression on the lengths themselves and the same neighbours: it knows which of two jobs with like medians may become the longer one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from .base import Floats, JobFeatures, Observation, Prediction, Saved
from .calibration import Calibration
from .embedding import SentenceModel
from .features import Rows
from .regressor import calibrate
from .retrieval import NEIGHBOURS, Retrieval, neighbour_weights
from .ridge import Ridge
from .store import CAPACITY

PRIOR_WEIGHT = 2.0
RIDGE_SHARE = 0.7
SOURCES = ("regressor", "retrieval")


class Learned(Retrieval):
    """Errors are kept apart for jobs that neighbours decide and jobs that the models decide: the former are far surer."""

    name: ClassVar[str] = "learned"

    def __init__(self, seed: int = 0, capacity: int = CAPACITY, embedding: SentenceModel | None = None) -> None:
        super().__init__(seed, capacity, embedding)
        self.ridge = Ridge(self.regressor.replay, self.regressor.featurizer)
        self._calibrations = {source: Calibration() for source in SOURCES}
        self._means = {source: Calibration() for source in SOURCES}

    def predict(self, job: JobFeatures) -> Prediction:
        if not self.store.added:
            return Prediction.ignorant(job.max_tokens)
        estimates, by_neighbours = self._estimates([job], self.regressor.row(job))
        source = SOURCES[int(by_neighbours[0])]
        calibration, means = (_ready(parts, source) for parts in (self._calibrations, self._means))
        if not calibration:
            return Prediction.ignorant(job.max_tokens)
        said = calibration.prediction(float(estimates[0, 0]), job.max_tokens, source)
        return Prediction(said.lengths, means.mean(float(estimates[1, 0]), job.max_tokens), said.score, source)

    def learn_batch(self, batch: Sequence[Observation]) -> None:
        prompts = self.regressor.read(batch)
        jobs = [seen.job for seen in batch]
        rows = self.regressor.featurizer.rows(prompts, [job.length for job in jobs])
        estimates, by_neighbours = self._estimates(jobs, rows)
        samples = self.regressor.train(batch, prompts)
        self.ridge.advance(len(batch))
        self._remember(batch)
        for source, chosen in zip(SOURCES, (~by_neighbours, by_neighbours), strict=True):
            numbers = np.flatnonzero(chosen)
            if len(numbers):
                decided = [samples[i] for i in numbers]
                for parts, logs in zip((self._calibrations, self._means), estimates, strict=True):
                    calibrate(parts[source], logs[numbers], decided)

    def _estimates(self, jobs: Sequence[JobFeatures], rows: Rows) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """[2, jobs] estimated log lengths, for quantiles and for means; [jobs] whether neighbours outweigh the models in them."""
        estimates = self._by_models(rows)
        by_neighbours = np.zeros(len(jobs), np.bool_)
        for number, vector in enumerate(self.vectors(jobs, rows)):
            middle, mean = estimates[:, number].tolist()
            cosines, lengths = self.store.search(vector, NEIGHBOURS, middle)
            weights = neighbour_weights(cosines)
            total = float(weights.sum())
            logs, tokens = float(weights @ lengths), float(weights @ np.exp(lengths))
            middle = (PRIOR_WEIGHT * middle + logs) / (PRIOR_WEIGHT + total)
            mean = math.log((PRIOR_WEIGHT * math.exp(mean) + tokens) / (PRIOR_WEIGHT + total))
            estimates[:, number] = middle, mean
            by_neighbours[number] = total > PRIOR_WEIGHT
        return estimates, by_neighbours

    def _by_models(self, rows: Rows) -> Floats:
        """[2, rows]; the regressor's alone until the ridge regression has its first solution."""
        regressed, solution = self.regressor.estimates(rows), self.ridge.solution
        if solution is None:
            return np.stack([regressed, regressed])
        roots, means = solution.log_lengths(rows)
        return np.stack([(1 - RIDGE_SHARE) * regressed + RIDGE_SHARE * roots, means])

    def _parts(self) -> dict[str, Saved]:
        errors = {f"errors_{source}": part for source, part in self._calibrations.items()}
        means = {f"means_{source}": part for source, part in self._means.items()}
        return {**super()._parts(), "ridge": self.ridge, **errors, **means}


def _ready(parts: dict[str, Calibration], source: str) -> Calibration:
    """The source's own, where it has enough errors to be believed; otherwise those of jobs that the models decide, where there are any."""
    own, general = parts[source], parts[SOURCES[0]]
    return own if own.ready or not general else general
