"""The default predictor, ours: a regressor, a ranker and retrieved neighbours as measurements of one log length, calibrated quantiles.

Regressor and ranker are averaged, and count like PRIOR_WEIGHT neighbours; a neighbour counts the more, the nearer it is. So a prompt
that was seen before is predicted by what it came to, and a new one by the two models with a little help. Quantiles come from the
newest errors of exactly this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from .base import LEARN_BATCH, Floats, JobFeatures, Observation, Prediction, Saved
from .calibration import Calibration
from .embedding import SentenceModel
from .features import Rows
from .linear import SparseLinear
from .rank import RANK_RATE, RankLoss
from .regressor import calibrate
from .replay import Sample
from .retrieval import NEIGHBOURS, Retrieval, neighbour_weights
from .store import CAPACITY

PRIOR_WEIGHT = 1.0
RANK_SHARE = 0.4


class Learned(Retrieval):
    """Errors are kept apart for jobs that neighbours decide and jobs that the regressor decides: the former are far surer."""

    name: ClassVar[str] = "learned"

    def __init__(self, seed: int = 0, capacity: int = CAPACITY, embedding: SentenceModel | None = None) -> None:
        super().__init__(seed, capacity, embedding)
        self._rank_loss, self._ranker = RankLoss(seed), SparseLinear(RANK_RATE)
        self._calibrations = {"regressor": Calibration(), "retrieval": Calibration()}

    def predict(self, job: JobFeatures) -> Prediction:
        if not self.store.added:
            return Prediction.ignorant(job.max_tokens)
        estimates, by_neighbours = self._blend([job], self.regressor.row(job))
        source = "retrieval" if by_neighbours[0] else "regressor"
        own, general = self._calibrations[source], self._calibrations["regressor"]
        calibration = own if own.ready or not general else general
        return calibration.prediction(float(estimates[0]), job.max_tokens, source)

    def learn_batch(self, batch: Sequence[Observation]) -> None:
        prompts = self.regressor.read(batch)
        if not self.store.added:
            self._rank_loss.start(np.array([seen.log_tokens for seen in batch]))
        jobs = [seen.job for seen in batch]
        estimates, by_neighbours = self._blend(
            jobs, self.regressor.featurizer.rows(prompts, [job.length for job in jobs])
        )
        samples = self.regressor.train(batch, prompts)
        self._remember(batch)
        for source, chosen in (("regressor", ~by_neighbours), ("retrieval", by_neighbours)):
            numbers = np.flatnonzero(chosen)
            if len(numbers):
                calibrate(self._calibrations[source], estimates[numbers], [samples[i] for i in numbers])

    def on_trained(self, samples: Sequence[Sample], rows: Rows) -> None:
        super().on_trained(samples, rows)
        slopes = self._rank_loss.slopes(self._ranker.outputs(rows), samples)
        self._ranker.step(rows, slopes, len(samples) / LEARN_BATCH)

    def _blend(self, jobs: Sequence[JobFeatures], rows: Rows) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """[jobs] estimated log lengths, and whether neighbours outweigh the regressor in them."""
        ranked = self._rank_loss.lengths(self._ranker.outputs(rows))
        estimates = (1 - RANK_SHARE) * self.regressor.estimates(rows) + RANK_SHARE * ranked
        by_neighbours = np.zeros(len(jobs), np.bool_)
        for number, vector in enumerate(self.vectors(jobs, rows)):
            cosines, lengths = self.store.search(vector, NEIGHBOURS, float(estimates[number]))
            weights = neighbour_weights(cosines)
            total = float(weights.sum())
            estimates[number] = (PRIOR_WEIGHT * estimates[number] + float(weights @ lengths)) / (PRIOR_WEIGHT + total)
            by_neighbours[number] = total > PRIOR_WEIGHT
        return estimates, by_neighbours

    def _parts(self) -> dict[str, Saved]:
        own: dict[str, Saved] = {"rank_loss": self._rank_loss, "ranker": self._ranker}
        return {**super()._parts(), **own, **{f"errors_{name}": part for name, part in self._calibrations.items()}}
