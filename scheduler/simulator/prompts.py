"""Prompts of simulated jobs, and the oracle, which reads in them what no live scheduler knows: how long their outputs will be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from packhorse.errors import ConfigError
from scheduler.predictor import JobFeatures, Prediction, Predictor
from scheduler.predictor.base import Observation


class SimPrompt(Sequence[int]):
    """Token ids, or without them a range of their number, which takes no memory; and the job's output length."""

    __slots__ = ("ids", "output_tokens")

    def __init__(self, ids: Sequence[int], output_tokens: int) -> None:
        self.ids, self.output_tokens = ids, output_tokens

    @classmethod
    def of_length(cls, num_tokens: int, output_tokens: int) -> SimPrompt:
        return cls(range(num_tokens), output_tokens)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...

    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        return self.ids[index]


class SimOracle(Predictor):
    """The truth. Raises ConfigError for a job that is not simulated."""

    name = "oracle"

    def predict(self, job: JobFeatures) -> Prediction:
        if not isinstance(job.prompt, SimPrompt):
            raise ConfigError("predictor=oracle: this job's length is not known beforehand", param="predictor")
        return Prediction.certain(job.prompt.output_tokens, self.name)

    def learn_batch(self, batch: Sequence[Observation]) -> None:
        """There is nothing to learn."""
