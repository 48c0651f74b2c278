"""A linear regression of the log length with L1 loss, trained as jobs finish (the role of SSJF's regressor, arXiv 2404.08509).

SSJF fine-tunes BERT; L1 is what it found best of its losses. Hashed n-grams, replay and constants are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .base import (
    LEARN_BATCH,
    Floats,
    JobFeatures,
    Observation,
    Prediction,
    Predictor,
    Saved,
    State,
    join_states,
    split_state,
)
from .calibration import Calibration
from .features import Buckets, Featurizer, Rows, buckets
from .linear import SparseLinear
from .replay import Replay, Sample, log_tokens, telling

# Ours: every finished job is learned from once, and with it REPLAYED earlier ones.
REPLAYED = 8
RATE = 0.08


class LinearPredictor(Predictor):
    """What the regressor and the ranker share: features, a linear model, replay. They differ in the loss."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.featurizer = Featurizer()
        self.linear = SparseLinear(self.rate)
        self.replay = Replay(seed)
        self.calibration = Calibration()

    rate: ClassVar[float] = RATE

    def row(self, job: JobFeatures) -> Rows:
        return self.featurizer.rows([buckets(job)], [job.length])

    def slopes(self, outputs: Floats, samples: Sequence[Sample]) -> Floats:
        """The loss's derivatives by `outputs`, [samples]."""
        raise NotImplementedError

    def start(self, lengths: Floats) -> None:
        """Before anything is learned: the log lengths of the first jobs."""

    def predict(self, job: JobFeatures) -> Prediction:
        return self.predict_row(self.row(job), job.max_tokens)

    def predict_row(self, row: Rows, max_tokens: int) -> Prediction:
        if not self.calibration:
            return Prediction.ignorant(max_tokens)
        return self.calibration.prediction(float(self.estimates(row)[0]), max_tokens, self.name)

    def learn_batch(self, batch: Sequence[Observation]) -> None:
        prompts = self.read(batch)
        estimates = self.estimates(self.featurizer.rows(prompts, [seen.job.length for seen in batch]))
        samples = self.train(batch, prompts)
        calibrate(self.calibration, estimates, samples)

    def read(self, batch: Sequence[Observation]) -> list[Buckets]:
        """The jobs' buckets; to be called first for every batch."""
        if not self.replay.added:
            self.start(np.array([seen.log_tokens for seen in batch]))
        return [buckets(seen.job) for seen in batch]

    def estimates(self, rows: Rows) -> Floats:
        """[rows] log lengths."""
        return self.linear.outputs(rows)

    def train(self, batch: Sequence[Observation], prompts: Sequence[Buckets]) -> list[Sample]:
        """Steps over the batch and REPLAYED times as many earlier jobs; returns the samples of the batch."""
        self.featurizer.count(prompts)
        earlier = self.replay.draw(REPLAYED * len(batch))
        new = [
            self.replay.add(p, seen.job.length, seen.log_tokens, seen.truncated)
            for seen, p in zip(batch, prompts, strict=True)
        ]
        for samples in (new, *(earlier[i : i + LEARN_BATCH] for i in range(0, len(earlier), LEARN_BATCH))):
            self.trained(samples, self._step(samples))
        return new

    def trained(self, samples: Sequence[Sample], rows: Rows) -> None:
        """`samples`, new or replayed, were just learned from, as `rows`."""

    def _step(self, samples: Sequence[Sample]) -> Rows:
        rows = self.featurizer.rows([s.buckets for s in samples], [s.prompt_tokens for s in samples])
        slopes = self.slopes(self.linear.outputs(rows), samples)
        self.linear.step(rows, slopes, len(samples) / LEARN_BATCH)
        return rows

    def _parts(self) -> dict[str, Saved]:
        return {
            "featurizer": self.featurizer,
            "linear": self.linear,
            "replay": self.replay,
            "calibration": self.calibration,
        }

    def state(self) -> State:
        return join_states(self._parts())

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        split_state(self._parts(), state)


class Regressor(LinearPredictor):
    """Minimizes |log actual - output|. A truncated job pulls its estimate up only."""

    name = "regressor"

    def start(self, lengths: Floats) -> None:
        self.linear.bias = float(np.median(lengths))

    def slopes(self, outputs: Floats, samples: Sequence[Sample]) -> Floats:
        slopes = -np.sign(log_tokens(samples) - outputs) / len(samples)
        slopes[~telling(samples, outputs)] = 0.0
        return slopes


def calibrate(calibration: Calibration, estimates: Floats, samples: Sequence[Sample]) -> None:
    """Adds the errors of `estimates` made before learning; that of a truncated job only where it was longer than estimated."""
    errors, known = log_tokens(samples) - estimates, telling(samples, estimates)
    if known.any():
        calibration.add(estimates[known], errors[known])
