"""A prompt as a sparse vector: hashed n-grams of its token ids, weighted by rarity, and its length. No vocabulary, no download.

Over token ids n-grams of 1 to 3 work as word and part-of-word n-grams do over text. What starts a prompt says most about its answer,
so the first tokens count again by position, by prefix and by pair. A text becomes ids by `text_ids`, one for each word.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .base import JobFeatures, State, checked, checked_counts

BITS = 18
BUCKETS = 1 << BITS
LENGTH_COLUMNS = 16
COLUMNS = BUCKETS + LENGTH_COLUMNS

# Ours, chosen on Alpaca prompts: HEAD_TOKENS and TAIL_TOKENS are read of long prompts, which bounds the time of one prediction.
HEAD_TOKENS, TAIL_TOKENS = 128, 64
ZONE_TOKENS = 16
PAIR_TOKENS = 8
END_TOKENS = 3
LENGTH_WEIGHT = 0.3

_CENTRES = np.linspace(1.0, 11.0, LENGTH_COLUMNS)  # of log(prompt tokens): e to 60,000
_WIDTH = _CENTRES[1] - _CENTRES[0]
_LENGTH_COLUMN_NUMBERS = np.arange(BUCKETS, COLUMNS, dtype=np.int64)
_FIRST, _SECOND = np.triu_indices(PAIR_TOKENS, 1)

# As arrays of no dimension: numpy combines them with short arrays in two thirds of the time that it takes with numbers.
_M1, _M2, _M3 = (np.array(x, np.uint64) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_S30, _S27, _S31, _SHIFT = (np.array(x, np.uint64) for x in (30, 27, 31, 64 - BITS))
_THREE, _FIVE = (np.array(x, np.uint64) for x in (3, 5))
_PLACES = np.arange(max(PAIR_TOKENS, END_TOKENS), dtype=np.uint64)
_HEAD_PLACES, _WEIGHTS = _PLACES + np.uint64(1000), _PLACES * _M1 + _M2
_SIZES = np.arange(1, 4, dtype=np.uint64)[:, None]  # of n-grams
_ZONES = _SIZES + np.uint64(77)

Hashes = npt.NDArray[np.uint64]
Buckets = npt.NDArray[np.uint32]
Number = TypeVar("Number", bound=np.generic)


def mix(h: Hashes) -> Hashes:
    """The finalizer of splitmix64, element by element."""
    h = h ^ (h >> _S30)
    h *= _M2
    h ^= h >> _S27
    h *= _M3
    h ^= h >> _S31
    return h


def text_ids(text: str) -> tuple[int, ...]:
    """Words, punctuation and line ends of `text`, lower-cased, as 32-bit numbers: for where there is no tokenizer."""
    return tuple(zlib.crc32(word.encode("utf-8")) for word in re.findall(r"\w+|[^\w\s]|\n", text.lower()))


def buckets(job: JobFeatures) -> Buckets:
    """The distinct buckets of the job's n-grams, ascending; none without token ids."""
    tokens = _clip(job.prompt)
    if not len(tokens):
        return np.empty(0, np.uint32)
    grams = _grams(tokens)
    sized = grams + _SIZES[: len(grams)]
    zones = grams[:, :ZONE_TOKENS] * _THREE + _ZONES[: len(grams)]
    hashes = mix(np.concatenate((sized.ravel(), zones.ravel(), *_edges(tokens))))
    return distinct((hashes >> _SHIFT).astype(np.uint32))


def _grams(tokens: Hashes) -> Hashes:
    """[at most 3, tokens]: hashes of the n-grams of each size by their first token; where none starts, the first one again."""
    count = len(tokens)
    grams = np.empty((min(count, len(_SIZES)), count), np.uint64)
    grams[0] = before = mix(tokens + _M1)
    for size in range(1, len(grams)):
        before = mix(before[:-1] * _M1 + tokens[size:])
        grams[size, : count - size] = before
        grams[size, count - size :] = before[0]
    return grams


def _edges(tokens: Hashes) -> tuple[Hashes, ...]:
    """Of the first tokens each by its place, all prefixes and all pairs in any order; of the last tokens all suffixes."""
    head, end = tokens[:PAIR_TOKENS], tokens[: -END_TOKENS - 1 : -1]
    prefixes = np.add.accumulate(head * _WEIGHTS[: len(head)])
    suffixes = np.add.accumulate(end * _WEIGHTS[: len(end)] + _FIVE)
    placed = head * _M1 + _HEAD_PLACES[: len(head)]
    if len(head) < PAIR_TOKENS:
        return prefixes, suffixes, mix(placed)
    ordered = np.sort(head)
    mixed = mix(np.concatenate((placed, ordered[_FIRST] * _M1 + _THREE)))
    mixed[PAIR_TOKENS:] += ordered[_SECOND] * _M2
    return prefixes, suffixes, mixed


def distinct(numbers: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """The numbers without repetitions, ascending; sorts them in place. np.unique does more, in four times the time."""
    numbers.sort()
    first = np.empty(len(numbers), np.bool_)
    first[:1] = True
    np.not_equal(numbers[1:], numbers[:-1], out=first[1:])
    return numbers[first]


def _clip(prompt: Sequence[int]) -> Hashes:
    if len(prompt) > HEAD_TOKENS + TAIL_TOKENS:
        prompt = (*prompt[:HEAD_TOKENS], *prompt[-TAIL_TOKENS:])
    return np.array(prompt, dtype=np.int64).view(np.uint64)


@dataclass(frozen=True, slots=True)
class Rows:
    """Sparse rows, one after the other. columns, values: [nonzero]; starts: [rows]. No row is empty."""

    columns: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def row_numbers(self) -> npt.NDArray[np.int64]:
        """[nonzero] the row of each value."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts, append=len(self.columns)))


class Featurizer:
    """Weighs buckets by inverse document frequency over the jobs counted so far; buckets never seen weigh nothing."""

    def __init__(self) -> None:
        self.documents = 0
        self.frequency = np.zeros(BUCKETS, np.int32)

    def count(self, prompts: Sequence[Buckets]) -> None:
        """These prompts were seen."""
        self.documents += len(prompts)
        for prompt in prompts:
            self.frequency[prompt] += 1

    def rows(self, prompts: Sequence[Buckets], prompt_tokens: Sequence[int]) -> Rows:
        """One row for each prompt: n-grams of norm 1, then the length columns."""
        columns, values, starts, size = [], [], [], 0
        for prompt, tokens in zip(prompts, prompt_tokens, strict=True):
            starts.append(size)
            numbers = prompt.astype(np.int64)
            columns += [numbers, _LENGTH_COLUMN_NUMBERS]
            values += [self._weights(numbers), length_values(tokens)]
            size += len(prompt) + LENGTH_COLUMNS
        return Rows(np.concatenate(columns), np.concatenate(values), np.array(starts, np.int64))

    def _weights(self, columns: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        frequency = self.frequency[columns]
        weights = np.log1p(frequency)
        np.subtract(math.log(1 + self.documents) + 1, weights, out=weights)
        weights *= frequency > 0
        norm = math.sqrt(float(weights @ weights))
        return (weights / norm if norm else weights).astype(np.float32)

    def state(self) -> State:
        return {"documents": np.array([self.documents]), "frequency": self.frequency}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        self.frequency = checked(state, "frequency", self.frequency)
        (self.documents,) = checked_counts(state, "documents", 1)


@lru_cache(1 << 14)
def length_values(tokens: int) -> npt.NDArray[np.float32]:
    """[LENGTH_COLUMNS] bumps over the logarithm of the prompt's length; not to be written to."""
    distance = (math.log(max(tokens, 1)) - _CENTRES) / _WIDTH
    values: npt.NDArray[np.float32] = (LENGTH_WEIGHT * np.exp(-0.5 * distance * distance)).astype(np.float32)
    values.flags.writeable = False
    return values
