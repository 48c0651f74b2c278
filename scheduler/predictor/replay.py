"""The newest finished jobs, kept to be learned from again: one pass over a stream teaches a linear model far less than six."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import Floats, State, checked, checked_counts
from .features import BUCKETS, Buckets

CAPACITY = 16_384


@dataclass(frozen=True, slots=True)
class Sample:
    """A finished job, as models learn from it. `serial` numbers the jobs that were ever learned from."""

    serial: int
    buckets: Buckets
    prompt_tokens: int
    log_tokens: float
    truncated: bool


class Replay:
    """A ring of CAPACITY samples. `draw` repeats itself for equal seeds and equal histories."""

    def __init__(self, seed: int, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.added = 0
        self._samples: list[Sample] = []
        self._seed, self._draws = seed, 0

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, buckets: Buckets, prompt_tokens: int, log_tokens: float, truncated: bool) -> Sample:
        sample = Sample(self.added, buckets, prompt_tokens, log_tokens, truncated)
        if len(self._samples) < self.capacity:
            self._samples.append(sample)
        else:
            self._samples[self.added % self.capacity] = sample
        self.added += 1
        return sample

    def draw(self, count: int) -> list[Sample]:
        """At most `count` different samples at random, newer ones oftener: the logarithm of the age is uniform (ours).

        Drawn evenly, the oldest would have been rehearsed most by the end and the newest hardly at all.
        """
        size = len(self._samples)
        rng = np.random.default_rng((self._seed, self.added, self._draws))
        self._draws += 1
        ages = np.unique(((size + 1.0) ** rng.random(count)).astype(np.int64) - 1)
        return [self._samples[(self.added - 1 - age) % self.capacity] for age in ages.tolist() if age < size]

    def newest(self) -> list[Sample]:
        """All that are kept, the oldest first."""
        start = self.added % self.capacity if len(self._samples) == self.capacity else 0
        return self._samples[start:] + self._samples[:start]

    def state(self) -> State:
        """The samples side by side; buckets one after the other with the number of each."""
        samples = self._samples
        return {
            "added": np.array([self.added, self._draws]),
            "serials": np.array([s.serial for s in samples], np.int64),
            "prompt_tokens": np.array([s.prompt_tokens for s in samples], np.int64),
            "log_tokens": np.array([s.log_tokens for s in samples], np.float64),
            "truncated": np.array([s.truncated for s in samples], np.bool_),
            "sizes": np.array([len(s.buckets) for s in samples], np.int64),
            "buckets": np.concatenate([np.empty(0, np.uint32), *(s.buckets for s in samples)]),
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raises ValueError where the arrays do not belong together, or a bucket is none."""
        added, draws = checked_counts(state, "added", 2)
        numbers = np.empty(min(added, self.capacity), np.int64)
        serials, prompt_tokens, sizes = (checked(state, key, numbers) for key in ("serials", "prompt_tokens", "sizes"))
        lengths = checked(state, "log_tokens", numbers.astype(np.float64))
        truncated = checked(state, "truncated", numbers.astype(np.bool_))
        flat = checked(state, "buckets", np.empty(max(int(sizes.sum()), 0), np.uint32))
        if sizes.min(initial=0) < 0 or flat.max(initial=0) >= BUCKETS:
            raise ValueError(f"buckets has more than the {BUCKETS} that there are, or less than none of a sample")
        parts = np.split(flat, np.cumsum(sizes)[:-1]) if len(sizes) else []
        columns = (serials.tolist(), parts, prompt_tokens.tolist(), lengths.tolist(), truncated.tolist())
        self._samples = [Sample(*row) for row in zip(*columns, strict=True)]
        self.added, self._draws = added, draws


def log_tokens(samples: Sequence[Sample]) -> Floats:
    return np.array([sample.log_tokens for sample in samples], np.float64)


def telling(samples: Sequence[Sample], estimates: Floats) -> npt.NDArray[np.bool_]:
    """[samples] Whether a sample speaks against its estimate, a log length: one that was cut off below it only says what is believed."""
    cut = np.array([sample.truncated for sample in samples], np.bool_)
    told: npt.NDArray[np.bool_] = ~cut | (log_tokens(samples) > estimates)
    return told
