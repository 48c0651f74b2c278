"""Scores of remaining lengths on a decode worker: which sequences of a step are due for one, and what the next heartbeat takes along."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch

from decode.batch import DecodeSequence
from model.length_probe import LengthProbe
from transport.messages import MAX_SCORES, LengthScore

SCORE_EVERY = 8  # tokens; as in TRAIL's release
_DIGITS = 4


@dataclass(frozen=True)
class Scorer:
    """Scores each sequence at every SCORE_EVERY-th token, on the engine's thread."""

    probe: LengthProbe

    def due(self, sequences: Sequence[DecodeSequence]) -> list[int]:
        """Indices of those to be scored in the step that takes in their newest token."""
        return [i for i, sequence in enumerate(sequences) if sequence.generated % SCORE_EVERY == 0]

    def scores(
        self, sequences: Sequence[DecodeSequence], due: Sequence[int], hidden: torch.Tensor
    ) -> dict[str, LengthScore]:
        """hidden [batch, hidden_size] -> by job; a state that holds no numbers gives no score."""
        found = {}
        for i, row in zip(due, self.probe(hidden[list(due)]).tolist(), strict=True):
            if all(p == p for p in row):  # NaN differs from itself
                found[sequences[i].job.job_id] = LengthScore(
                    generated=sequences[i].generated,
                    span_tokens=self.probe.span_tokens,
                    probabilities=tuple(round(min(p, 1.0), _DIGITS) for p in row),
                )
        return found


class NewScores:
    """The newest score of each job that no heartbeat has taken yet."""

    def __init__(self) -> None:
        self._scores: dict[str, LengthScore] = {}

    def add(self, scores: Mapping[str, LengthScore]) -> None:
        self._scores.update(scores)

    def take(self, held: Container[str]) -> dict[str, LengthScore]:
        """MAX_SCORES at most, of jobs that are `held`; the rest waits for the next heartbeat."""
        mine = {job_id: score for job_id, score in self._scores.items() if job_id in held}
        taken = dict(list(mine.items())[:MAX_SCORES])
        self._scores = {job_id: score for job_id, score in mine.items() if job_id not in taken}
        return taken
