"""Learning to rank (Fu et al., arXiv 2408.15792): a score for the order of jobs alone, trained by ListMLE on lists of finished jobs.

The paper trains OPT-125M; labels in groups of 10 tokens and ties in random order are its own, the linear model and its rate ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import Floats, State, checked
from .regressor import LinearPredictor
from .replay import Sample

GROUP_TOKENS = 10
FORGET = 0.01  # of the line from score to log length, per list (ours)


class Ranker(LinearPredictor):
    """Outputs are scores, higher for shorter; a running least-squares line turns them into lengths for those who want quantiles."""

    name = "rank"
    rate = 0.1

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._seed = seed
        self._moments = np.zeros(5)  # of score s and log length l: 1, s, l, s*s, s*l

    def estimate(self, output: float) -> float:
        weight, score, length, square, product = self._moments.tolist()
        if not weight:
            return -output
        score, length = score / weight, length / weight
        slope = min((product / weight - score * length) / (square / weight - score * score + 1e-6), -1e-3)
        return length + slope * (output - score)

    def slopes(self, outputs: Floats, samples: Sequence[Sample]) -> Floats:
        lengths = np.array([sample.log_tokens for sample in samples])
        self._fit_line(outputs, lengths)
        groups = np.exp(lengths) // GROUP_TOKENS
        ties = np.random.default_rng((self._seed, samples[0].serial, self.replay.added)).random(len(groups))
        return list_mle_slopes(outputs, np.lexsort((ties, groups))) / len(samples)

    def _fit_line(self, scores: Floats, lengths: Floats) -> None:
        terms = np.stack([np.ones_like(scores), scores, lengths, scores * scores, scores * lengths])
        self._moments = (1 - FORGET) * self._moments + FORGET * terms.mean(axis=1)

    def state(self) -> State:
        return {**super().state(), "moments": self._moments}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        super().restore(state)
        self._moments = checked(state, "moments", self._moments)


def list_mle_slopes(scores: Floats, order: npt.NDArray[np.int64]) -> Floats:
    """Derivatives of -log prod_i exp(g_i) / sum_{k>=i} exp(g_k), with g the scores in `order`, the true one; both [list]."""
    sorted_scores = scores[order]
    powers = np.exp(sorted_scores - sorted_scores.max())
    tails = np.maximum(np.cumsum(powers[::-1])[::-1], 1e-300)
    slopes = np.empty_like(scores)
    slopes[order] = powers * np.cumsum(1 / tails) - 1
    return slopes
