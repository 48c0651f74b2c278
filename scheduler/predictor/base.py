"""What predicts output lengths, as everything else sees it: a job's features in, a distribution of its length out, and word of how
long finished jobs were. Knows nothing of workers, messages or clocks; `learn` alone looks at the time, and only when given a budget.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol
from zipfile import BadZipFile, is_zipfile

import numpy as np
import numpy.typing as npt

from packhorse.errors import ConfigError
from transport.messages import Job

LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
LEARN_BATCH = 32
QUEUE_JOBS = 8192
FILE_VERSION = 3

Floats = npt.NDArray[np.float64]
State = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class JobFeatures:
    """What is known of a job when it arrives. `prompt` holds token ids; without them (a trace of lengths) `prompt_tokens` counts.

    `text` is for predictors that embed sentences. `actual_tokens` is the length it will have: for the oracle alone.
    """

    prompt: Sequence[int] = ()
    max_tokens: int = 512
    prompt_tokens: int = 0
    text: str | None = None
    actual_tokens: int | None = None

    @classmethod
    def of(cls, job: Job) -> JobFeatures:
        return cls(job.prompt, job.sampling.max_tokens, len(job.prompt))

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.prompt_tokens or len(self.prompt)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The distribution of an output length in tokens.

    `lengths` are its quantiles at LEVELS, ascending; `score` orders jobs: higher is shorter. `source` says what it rests on.
    """

    lengths: tuple[float, ...]
    mean: float
    score: float
    source: str

    @classmethod
    def certain(cls, tokens: float, source: str) -> Prediction:
        """All mass on one length."""
        return cls((float(tokens),) * len(LEVELS), float(tokens), -math.log(max(tokens, 1e-9)), source)

    @classmethod
    def ignorant(cls, max_tokens: int, source: str = "nothing seen yet") -> Prediction:
        """Uniform from 1 to max_tokens: what is said before the first job has finished (our choice)."""
        lengths = tuple(1 + level * (max_tokens - 1) for level in LEVELS)
        return cls(lengths, (1 + max_tokens) / 2, -math.log(lengths[3]), source)

    @property
    def p10(self) -> float:
        return self.lengths[1]

    @property
    def p50(self) -> float:
        return self.lengths[3]

    @property
    def p90(self) -> float:
        return self.lengths[5]

    def quantile(self, level: float) -> float:
        """The length that is not exceeded with probability `level` (0 to 1); linear between LEVELS, flat outside them."""
        if level <= LEVELS[0]:
            return self.lengths[0]
        if level >= LEVELS[-1]:
            return self.lengths[-1]
        above = bisect_right(LEVELS, level)
        share = (level - LEVELS[above - 1]) / (LEVELS[above] - LEVELS[above - 1])
        return self.lengths[above - 1] + share * (self.lengths[above] - self.lengths[above - 1])

    def level(self, tokens: float) -> float:
        """The probability that the length is at most `tokens`: the inverse of `quantile`, 0 and 0.99 outside it."""
        above = bisect_right(self.lengths, tokens)
        if above == 0:
            return 0.0
        if above == len(LEVELS):
            return LEVELS[-1]
        low, high = self.lengths[above - 1], self.lengths[above]
        return LEVELS[above - 1] + (tokens - low) / (high - low) * (LEVELS[above] - LEVELS[above - 1])


@dataclass(frozen=True, slots=True)
class Observation:
    """A finished job. `truncated`: it was stopped at max_tokens, so that `tokens` is only a lower bound."""

    job: JobFeatures
    tokens: int
    truncated: bool

    @property
    def log_tokens(self) -> float:
        return math.log(max(self.tokens, 1))


class Predictor(ABC):
    """Predicts at once, learns later: `observe` queues, `learn` works the queue off.

    One thread may learn while another predicts: what a reader can catch half-written costs it one stale value, never an error.
    Equal calls give equal predictions for equal seeds, as long as `learn` is called without a budget.
    """

    name: ClassVar[str]

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.dropped = 0  # observations that found the queue full
        self.learned = 0
        self._clock = clock
        self._queue: deque[Observation] = deque()
        self._seconds_per_job = 1e-4

    @abstractmethod
    def predict(self, job: JobFeatures) -> Prediction: ...

    def observe(self, job: JobFeatures, tokens: int, truncated: bool | None = None) -> None:
        """`job` ended after `tokens`. By default a job as long as its max_tokens counts as truncated. Cancelled jobs tell nothing."""
        if len(self._queue) >= QUEUE_JOBS:
            self.dropped += 1
            return
        cut = tokens >= job.max_tokens if truncated is None else truncated
        self._queue.append(Observation(job, tokens, cut))

    @property
    def pending(self) -> int:
        """Observations not yet learned from."""
        return len(self._queue)

    def learn(self, budget_seconds: float = math.inf) -> int:
        """Learns from queued jobs until none is left or the budget is spent (one job at least); returns how many."""
        start, count = self._clock(), 0
        while self._queue:
            left = budget_seconds - (self._clock() - start)
            if count and left < self._seconds_per_job:
                break
            fit = LEARN_BATCH if left == math.inf else min(LEARN_BATCH, max(1, int(left / self._seconds_per_job)))
            batch = [self._queue.popleft() for _ in range(min(fit, len(self._queue)))]
            before = self._clock()
            self.learn_batch(batch)
            self._seconds_per_job += 0.2 * ((self._clock() - before) / len(batch) - self._seconds_per_job)
            count += len(batch)
        self.learned += count
        return count

    @abstractmethod
    def learn_batch(self, batch: Sequence[Observation]) -> None:
        """Learns from these jobs now."""

    def state(self) -> State:
        """Everything learned, as arrays by name."""
        return {}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Takes over what `state` gave. Raises KeyError or ValueError where it does not fit."""
        if state:
            raise ValueError(f"holds {', '.join(sorted(state))}, but {self.name} learns nothing")

    def save(self, path: Path) -> None:
        """Writes what was learned as an .npz without pickled objects; raises ConfigError where that fails.

        Whatever happens meanwhile, `path` holds one whole state: the new one or the one before.
        """
        head = np.array(json.dumps({"version": FILE_VERSION, "predictor": self.name}))
        part = path.with_name(f"{path.name}.part")
        try:
            with part.open("wb") as file:
                np.savez(file, allow_pickle=False, head=head, **self.state())
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise ConfigError(f"predictor file {path}: {error.strerror or error}") from error

    def load(self, path: Path) -> None:
        """Takes over what a predictor of the same name saved; raises ConfigError where the file is missing, broken or another's."""
        try:
            head, state = _read(path)
            expected = {"version": FILE_VERSION, "predictor": self.name}
            if head != expected:
                raise ValueError(f"holds {head}, not {expected}")
            self.restore(state)
        except OSError as error:
            raise ConfigError(f"predictor file {path}: {error.strerror or error}") from error
        except KeyError as error:
            raise ConfigError(f"predictor file {path}: has no {error.args[0]}") from error
        except (ValueError, EOFError, BadZipFile, zlib.error) as error:
            raise ConfigError(f"predictor file {path}: {error}") from error


def _read(path: Path) -> tuple[Any, State]:
    """The head of a predictor file and its arrays. Raises OSError, ValueError, EOFError, BadZipFile or zlib.error."""
    with path.open("rb") as file:
        if not is_zipfile(file):
            raise ValueError("is no .npz file, or not all of one")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            state = {name: arrays[name] for name in arrays.files}
    if "head" not in state:
        raise ValueError("has no head")
    return json.loads(str(state.pop("head"))), state


class Saved(Protocol):
    """A part of a predictor that holds something learned."""

    def state(self) -> State: ...

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None: ...


def join_states(parts: Mapping[str, Saved]) -> State:
    """The states of all parts, each under its name."""
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state().items()}


def split_state(parts: Mapping[str, Saved], state: Mapping[str, npt.NDArray[Any]]) -> None:
    """Gives every part back what `join_states` took from it."""
    for name, part in parts.items():
        start = f"{name}."
        part.restore({key.removeprefix(start): value for key, value in state.items() if key.startswith(start)})


def checked(state: Mapping[str, npt.NDArray[Any]], key: str, like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A writable copy of `state[key]`; raises ValueError where its shape or type is not that of `like`, or a number is not finite."""
    value = state[key]
    if value.shape != like.shape or value.dtype != like.dtype:
        raise ValueError(f"{key} is {value.dtype}{list(value.shape)}, not {like.dtype}{list(like.shape)}")
    if not np.isfinite(value).all():
        raise ValueError(f"{key} holds what is no finite number")
    return value.copy()


def checked_counts(state: Mapping[str, npt.NDArray[Any]], key: str, count: int) -> list[int]:
    """`count` whole numbers; raises ValueError for anything else, and for a negative one."""
    values: list[int] = checked(state, key, np.zeros(count, np.int64)).tolist()
    if min(values) < 0:
        raise ValueError(f"{key} is {values}: no count is negative")
    return values
