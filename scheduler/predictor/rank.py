"""Learning to rank (Fu et al., arXiv 2408.15792): a score for the order of jobs alone, trained by ListMLE on lists of finished jobs.

The paper trains OPT-125M; labels in groups of 10 tokens and ties in random order are its own, the linear model and its rate ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import Floats, Saved, State, checked, checked_counts
from .features import Rows
from .regressor import LinearPredictor
from .replay import Sample, log_tokens, telling

GROUP_TOKENS = 10
RANK_RATE = 0.1
FORGET = 0.01  # of the line from score to log length, per list (ours)


class RankLoss:
    """ListMLE over lists of samples, and the line by which its scores, higher for shorter, stand for log lengths."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._lists = 0
        self._moments = np.zeros(5)  # of score s and log length l: 1, s, l, s*s, s*l

    def start(self, lengths: Floats) -> None:
        self._moments = np.array([FORGET, 0.0, FORGET * float(lengths.mean()), 0.0, 0.0])

    def slopes(self, scores: Floats, samples: Sequence[Sample]) -> Floats:
        """The loss's derivatives by `scores`, both [list]. A job that was cut off below its estimate has no place in the order."""
        slopes, told = np.zeros(len(samples)), telling(samples, self.lengths(scores))
        if told.sum() > 1:
            slopes[told] = self._ranked(scores[told], log_tokens(samples)[told]) / len(samples)
        return slopes

    def _ranked(self, scores: Floats, lengths: Floats) -> Floats:
        terms = np.stack([np.ones_like(scores), scores, lengths, scores * scores, scores * lengths])
        self._moments = (1 - FORGET) * self._moments + FORGET * terms.mean(axis=1)
        self._lists += 1
        ties = np.random.default_rng((self._seed, self._lists)).random(len(lengths))
        return list_mle_slopes(scores, np.lexsort((ties, np.exp(lengths) // GROUP_TOKENS)))

    def lengths(self, scores: Floats) -> Floats:
        """Log lengths by the running least-squares line, which never rises with the score."""
        weight, score, length, square, product = self._moments.tolist()
        score, length = score / weight, length / weight
        slope = min((product / weight - score * length) / (square / weight - score * score + 1e-6), -1e-3)
        return length + slope * (scores - score)

    def state(self) -> State:
        return {"moments": self._moments, "lists": np.array([self._lists])}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        self._moments = checked(state, "moments", self._moments)
        (self._lists,) = checked_counts(state, "lists", 1)


class Ranker(LinearPredictor):
    """Scores by RankLoss; who wants quantiles gets those of past jobs of like scores."""

    name = "rank"
    rate = RANK_RATE

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.loss = RankLoss(seed)

    def start(self, lengths: Floats) -> None:
        self.loss.start(lengths)

    def estimates(self, rows: Rows) -> Floats:
        return self.loss.lengths(self.linear.outputs(rows))

    def slopes(self, outputs: Floats, samples: Sequence[Sample]) -> Floats:
        return self.loss.slopes(outputs, samples)

    def _parts(self) -> dict[str, Saved]:
        return {**super()._parts(), "loss": self.loss}


def list_mle_slopes(scores: Floats, order: npt.NDArray[np.int64]) -> Floats:
    """Derivatives of -log prod_i exp(g_i) / sum_{k>=i} exp(g_k), with g the scores in `order`, the true one; both [list]."""
    sorted_scores = scores[order]
    powers = np.exp(sorted_scores - sorted_scores.max())
    tails = np.maximum(np.cumsum(powers[::-1])[::-1], 1e-300)
    slopes = np.empty_like(scores)
    slopes[order] = powers * np.cumsum(1 / tails) - 1
    return slopes
