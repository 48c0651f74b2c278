"""Ridge regression of output lengths on the newest finished jobs' prompts, solved exactly, and a little at a time while jobs come in.

Least squares tell what stochastic steps with L1 loss do not: the expected length, not the middle one. Of two kinds of prompt that mostly
get short answers, the kind that sometimes gets a long one is the longer on average, and the average is what an order by length is about.

Solved in its dual form, (X X' + ALPHA) a = targets, by conjugate gradients (Hestenes and Stiefel 1952): one unknown for each sample,
which the next solution starts from. A solution is worked at in slices, most of them of a millisecond, the longest, which make a block of
rows, of 20 to 30, so that it goes on within small budgets of time; how far it comes is a matter of how many jobs were learned from, not of
the clock. Targets, powers and all constants are ours.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from .base import Floats, State, checked
from .features import COLUMNS, Featurizer, Rows
from .replay import Replay, Sample, log_tokens, telling

# Of the lengths: their roots, for lengths near the middle, and the lengths themselves, for their mean.
POWERS = np.array([0.5, 1.0])
ALPHA = 1.0  # of rows whose n-grams have norm 1
CLOSE = 0.02  # of the spread of the targets: residuals that are let be
MOST_STEPS = 24
BLOCK = 2048  # samples of a slice

# Work is counted in rows gone over once. A solution takes some 60 for each sample, so there is a new one after every eighth more jobs.
PAID = 512  # for each job learned from
BUILD, FIXED = 8, 256  # for a row to be made, and for a block whatever its rows


@dataclass(frozen=True)
class Solution:
    """output = values . weights * spreads + offsets. weights: [COLUMNS, powers], of spreads [powers]; offsets: [powers]."""

    weights: npt.NDArray[np.float32]
    offsets: Floats
    spreads: Floats

    def log_lengths(self, rows: Rows) -> Floats:
        """[powers, rows], each at least 0: the logs of lengths whose powers the outputs are."""
        products = rows.values[:, None] * self.weights[rows.columns]
        outputs = np.add.reduceat(products, rows.starts, axis=0, dtype=np.float64) * self.spreads + self.offsets
        logs: Floats = np.log(np.maximum(outputs, 1.0)).T / POWERS[:, None]
        return logs


class Ridge:
    """Learns from what `replay` holds, in rows of `featurizer`. `solution` is None until the first one is found."""

    def __init__(self, replay: Replay, featurizer: Featurizer) -> None:
        self.solution: Solution | None = None
        self._replay, self._featurizer = replay, featurizer
        self._serials = np.empty(0, np.int64)  # ascending: the samples of the last solution
        self._duals = np.empty((len(POWERS), 0))
        self._paid = 0
        self._work: Iterator[int] | None = None

    def advance(self, jobs: int) -> None:
        """So many more jobs were learned from: does the work that they pay for."""
        self._paid += PAID * jobs
        while self._paid > 0 and len(self._replay):
            self._go_on()

    def _go_on(self) -> None:
        """A slice of a solution, of a new one where none is worked at."""
        if self._work is None:
            self._work = self._solve()
        done = next(self._work, None)
        if done is None:
            self._work = None
        else:
            self._paid -= done

    def _solve(self) -> Iterator[int]:
        """Yields the work done after every slice."""
        samples = self._replay.newest()
        blocks, lengths = [], []
        for first in range(0, len(samples), BLOCK):
            part = samples[first : first + BLOCK]
            rows = self._featurizer.rows([s.buckets for s in part], [s.prompt_tokens for s in part])
            blocks.append(_matrix(rows))
            lengths.append(self._lengths(part, rows))
            yield BUILD * len(part) + FIXED
        targets = np.concatenate(lengths) ** POWERS[:, None]
        offsets, spreads = targets.mean(axis=1), targets.std(axis=1) + 1e-9
        serials = np.array([sample.serial for sample in samples])
        duals = self._warm(serials)
        weights = np.empty((COLUMNS, len(POWERS)), np.float32)
        for number, target in enumerate((targets - offsets[:, None]) / spreads[:, None]):
            duals[number] = yield from _conjugate_gradients(blocks, target, duals[number])
            weights[:, number] = yield from _combination(blocks, duals[number])
        self._serials, self._duals = serials, duals
        self.solution = Solution(weights, offsets, spreads)

    def _lengths(self, samples: Sequence[Sample], rows: Rows) -> Floats:
        """[samples] tokens; of those that were cut off below what is expected of them, what is expected."""
        logs = log_tokens(samples)
        if self.solution is None:
            return np.exp(logs)
        expected = self.solution.log_lengths(rows)[-1]
        return np.exp(np.where(telling(samples, expected), logs, expected))

    def _warm(self, serials: npt.NDArray[np.int64]) -> Floats:
        """[powers, samples] the unknowns as they were last; 0 for samples that are new."""
        duals = np.zeros((len(POWERS), len(serials)))
        _, new, old = np.intersect1d(serials, self._serials, assume_unique=True, return_indices=True)
        duals[:, new] = self._duals[:, old]
        return duals

    def state(self) -> State:
        """Finishes the solution that is being worked at, so that who restores it goes on the same."""
        while self._work is not None:
            self._go_on()
        if self.solution is None:
            return {}
        return {
            "weights": self.solution.weights,
            "scale": np.stack([self.solution.offsets, self.solution.spreads]),
            "serials": self._serials,
            "duals": self._duals,
            "paid": np.array(self._paid),
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raises ValueError where the arrays do not belong together."""
        if not state:
            self.solution, self._work = None, None
            return
        shape = (len(POWERS), state["serials"].size)
        serials = checked(state, "serials", np.empty(shape[1:], np.int64))
        if (np.diff(serials) <= 0).any():
            raise ValueError("serials do not ascend")
        duals, scale = checked(state, "duals", np.empty(shape)), checked(state, "scale", np.empty((2, len(POWERS))))
        weights = checked(state, "weights", np.empty((COLUMNS, len(POWERS)), np.float32))
        self._paid = int(checked(state, "paid", np.array(0)))
        self._serials, self._duals, self._work = serials, duals, None
        self.solution = Solution(weights, scale[0], scale[1])


Matrix = Any  # a csr_array, [rows, COLUMNS]: scipy has no types
Work = Generator[int, None, Floats]


def _matrix(rows: Rows) -> Matrix:
    """[rows, COLUMNS]"""
    ends = np.append(rows.starts, len(rows.columns))
    return csr_array((rows.values, rows.columns, ends), shape=(len(rows), COLUMNS))


def _conjugate_gradients(blocks: Sequence[Matrix], target: Floats, start: Floats) -> Work:
    """The solution a of (X X' + ALPHA) a = target, from `start`; both [samples]. Yields the work done after every slice."""
    duals = start.copy()
    residual = target - (yield from _product(blocks, duals))
    direction, square = residual, float(residual @ residual)
    for _ in range(MOST_STEPS):
        if square <= CLOSE * CLOSE * len(target):
            break
        product = yield from _product(blocks, direction)
        step = square / float(direction @ product)
        duals, residual = duals + step * direction, residual - step * product
        before, square = square, float(residual @ residual)
        direction = residual + square / before * direction
    return duals


def _product(blocks: Sequence[Matrix], vector: Floats) -> Work:
    """(X X' + ALPHA) vector, [samples]"""
    combined = (yield from _combination(blocks, vector)).astype(np.float32)
    parts = []
    for block in blocks:
        parts.append(block @ combined)
        yield block.shape[0] + FIXED
    return np.concatenate(parts) + ALPHA * vector


def _combination(blocks: Sequence[Matrix], vector: Floats) -> Work:
    """X' vector, [COLUMNS]"""
    combined, first = np.zeros(COLUMNS), 0
    for block in blocks:
        part = vector[first : first + block.shape[0]].astype(np.float32)
        combined += block.T @ part
        first += block.shape[0]
        yield block.shape[0] + FIXED
    return combined
