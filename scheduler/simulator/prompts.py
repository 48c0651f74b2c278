"""Prompts of simulated jobs, and the oracle, which reads in them what no live scheduler knows: how long their outputs will be.

Traces that keep texts secret may still say which of them are alike, block by block; `BlockPrompt` makes token ids of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class BlockPrompt(Sequence[int]):
    """Token ids of a prompt of which only blocks of `block_tokens` tokens are known: equal where the ids of blocks are equal.

    Ids of blocks are at least 0. Ids of tokens are made when they are asked for, so a prompt takes no more memory than its blocks.
    """

    blocks: tuple[int, ...]
    num_tokens: int
    block_tokens: int

    def __post_init__(self) -> None:
        assert self.num_tokens <= len(self.blocks) * self.block_tokens, "tokens without a block"

    def __len__(self) -> int:
        return self.num_tokens

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...

    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, int):
            return self._token(range(self.num_tokens)[index])
        start, stop, step = index.indices(self.num_tokens)
        if step == 1 and start // self.block_tokens == (stop - 1) // self.block_tokens:  # as nearly all pages are
            return range(self._token(start), self._token(start) + stop - start)
        return [self._token(place) for place in range(start, stop, step)]

    def _token(self, place: int) -> int:
        block, offset = divmod(place, self.block_tokens)
        return self.blocks[block] * self.block_tokens + offset


class SimOracle(Predictor):
    """The truth. Raises ConfigError for a job that is not simulated."""

    name = "oracle"

    def predict(self, job: JobFeatures) -> Prediction:
        if not isinstance(job.prompt, SimPrompt):
            raise ConfigError("predictor=oracle: this job's length is not known beforehand", param="predictor")
        return Prediction.certain(job.prompt.output_tokens, self.name)

    def learn_batch(self, batch: Sequence[Observation]) -> None:
        """There is nothing to learn."""
