"""ALISE's predictor (arXiv 2410.23537): the lengths that similar past prompts came to, or a regressor where none is near.

The paper embeds with BERT and does not give its threshold, number of neighbours or weights: those here are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .base import (
    LEVELS,
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
from .embedding import SentenceModel, Sketch, Vectors
from .features import Rows, buckets
from .regressor import Regressor
from .replay import Sample
from .store import CAPACITY, PromptStore

NEIGHBOURS = 16
NEAR = 0.35  # cosine of the nearest prompt from which on the neighbours are asked instead of the regressor
NUGGET = 0.05  # keeps the weight of an identical prompt finite


def neighbour_weights(cosines: npt.NDArray[np.float32]) -> Floats:
    """A neighbour counts as one measurement whose variance grows with 1 - cosine^2; [neighbours]."""
    squares = np.maximum(cosines, 0.0).astype(np.float64) ** 2
    return squares * squares / (1 - np.minimum(squares, 1.0) + NUGGET)


class Retrieval(Predictor):
    """The weighted mean and quantiles of the NEIGHBOURS nearest prompts' lengths.

    `embedding` is a sentence model; by default prompts are sketches of hashed n-grams, brought up to date as they are replayed.
    """

    name: ClassVar[str] = "retrieval"

    def __init__(self, seed: int = 0, capacity: int = CAPACITY, embedding: SentenceModel | None = None) -> None:
        super().__init__()
        self.regressor = _Watched(seed, self.on_trained)
        self._embedding = embedding
        self._sketch = None if embedding else Sketch()
        self.store = PromptStore(embedding.dims if embedding else Sketch().dims, capacity, seed)

    def predict(self, job: JobFeatures) -> Prediction:
        row = self.regressor.row(job)
        believed = float(self.regressor.estimates(row)[0])
        cosines, lengths = self.store.search(self.vectors([job], row)[0], NEIGHBOURS, believed)
        if not len(cosines) or cosines.max() < NEAR:
            return self.regressor.predict_row(row, job.max_tokens)
        return from_neighbours(lengths, neighbour_weights(cosines), job.max_tokens, self.name)

    def vectors(self, jobs: Sequence[JobFeatures], rows: Rows) -> Vectors:
        """[jobs, dims]"""
        if self._embedding:
            return self._embedding.vectors(jobs)
        assert self._sketch is not None
        return self._sketch.vectors(rows, self.regressor.linear.weights)

    def learn_batch(self, batch: Sequence[Observation]) -> None:
        self.regressor.learn_batch(batch)
        self._remember(batch)

    def _remember(self, batch: Sequence[Observation]) -> None:
        jobs = [seen.job for seen in batch]
        rows = self.regressor.featurizer.rows([buckets(job) for job in jobs], [job.length for job in jobs])
        lengths, cut = np.array([seen.log_tokens for seen in batch]), np.array([seen.truncated for seen in batch])
        self.store.add(self.vectors(jobs, rows), lengths, cut)

    def on_trained(self, samples: Sequence[Sample], rows: Rows) -> None:
        """The regressor changed its mind about these: so do their sketches."""
        if self._sketch is None:
            return
        stored = np.array([self.store.added - self.store.capacity <= s.serial < self.store.added for s in samples])
        if stored.any():
            slots = np.array([self.store.slot(sample.serial) for sample in samples])
            vectors = self._sketch.vectors(rows, self.regressor.linear.weights)
            self.store.put(slots[stored], vectors[stored])

    def _parts(self) -> dict[str, Saved]:
        return {"regressor": self.regressor, "store": self.store}

    @property
    def _embedded_by(self) -> str:
        return self._embedding.name if self._embedding else "a sketch of n-grams"

    def state(self) -> State:
        return {"embedding": np.array(self._embedded_by), **join_states(self._parts())}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raises ValueError also for vectors of another embedding, which are near to what they happen to be."""
        embedded_by = str(state["embedding"])
        if embedded_by != self._embedded_by:
            raise ValueError(f"holds prompts embedded by {embedded_by}, not by {self._embedded_by}")
        split_state(self._parts(), state)


def from_neighbours(lengths: npt.NDArray[np.float32], weights: Floats, max_tokens: int, source: str) -> Prediction:
    """Weighted quantiles and mean of log lengths [neighbours]; the score is the weighted mean of the logs."""
    order = np.argsort(lengths)
    tokens, shares = np.exp(lengths[order].astype(np.float64)), weights[order] / weights.sum()
    middles = np.cumsum(shares) - shares / 2
    quantiles = np.clip(np.interp(LEVELS, middles, tokens), 1, max_tokens).tolist()
    mean = min(max(float(shares @ tokens), 1.0), max_tokens)
    return Prediction(tuple(quantiles), mean, -float(shares @ lengths[order]), source)


class _Watched(Regressor):
    """A regressor that tells `refresh` what it has just learned from."""

    def __init__(self, seed: int, refresh: Callable[[Sequence[Sample], Rows], None]) -> None:
        super().__init__(seed)
        self._tell = refresh

    def trained(self, samples: Sequence[Sample], rows: Rows) -> None:
        self._tell(samples, rows)
