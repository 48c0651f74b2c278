"""The default predictor, ours: the regressor and the retrieved neighbours as measurements of one log length, calibrated quantiles.

Each neighbour counts the more, the nearer it is; the regressor counts like PRIOR_WEIGHT of them. So a prompt that was seen before is
predicted by what it came to, and a new one by the regressor with a little help. Quantiles come from the newest errors of exactly this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from .base import Floats, JobFeatures, Observation, Prediction, Saved
from .calibration import Calibration
from .embedding import SentenceModel
from .features import Rows, buckets
from .regressor import calibrate
from .retrieval import NEIGHBOURS, Retrieval, neighbour_weights
from .store import CAPACITY

PRIOR_WEIGHT = 1.0


class Learned(Retrieval):
    """Errors are kept apart for jobs that neighbours decide and jobs that the regressor decides: the former are far surer."""

    name: ClassVar[str] = "learned"

    def __init__(self, seed: int = 0, capacity: int = CAPACITY, embedding: SentenceModel | None = None) -> None:
        super().__init__(seed, capacity, embedding)
        self._calibrations = {"regressor": Calibration(), "retrieval": Calibration()}

    def predict(self, job: JobFeatures) -> Prediction:
        if not self.store.added:
            return Prediction.ignorant(job.max_tokens)
        estimates, by_neighbours = self._blend([job], self.regressor.row(job))
        source = "retrieval" if by_neighbours[0] else "regressor"
        calibration = self._calibrations[source] or self._calibrations["regressor"] or self._calibrations["retrieval"]
        return calibration.prediction(float(estimates[0]), job.max_tokens, source)

    def learn_batch(self, batch: Sequence[Observation]) -> None:
        prompts = [buckets(seen.job) for seen in batch]
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

    def _blend(self, jobs: Sequence[JobFeatures], rows: Rows) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """[jobs] estimated log lengths, and whether neighbours outweigh the regressor in them."""
        estimates = self.regressor.linear.outputs(rows)
        by_neighbours = np.zeros(len(jobs), np.bool_)
        for number, vector in enumerate(self.vectors(jobs, rows)):
            cosines, lengths = self.store.search(vector, NEIGHBOURS)
            weights = neighbour_weights(cosines)
            total = float(weights.sum())
            estimates[number] = (PRIOR_WEIGHT * estimates[number] + float(weights @ lengths)) / (PRIOR_WEIGHT + total)
            by_neighbours[number] = total > PRIOR_WEIGHT
        return estimates, by_neighbours

    def _parts(self) -> dict[str, Saved]:
        return {**super()._parts(), **{f"errors_{name}": part for name, part in self._calibrations.items()}}
