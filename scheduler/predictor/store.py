"""Past prompts as short vectors, and the ones nearest to a new one in well under a millisecond: a bounded index by cells.

Cells are the neighbourhoods of leaders, vectors drawn from the stored ones (cluster pruning: Chierichetti et al., 2007); the search
looks into the cells of the nearest leaders alone, and into no more than PROBED_ROWS vectors. The oldest entry makes room for a new one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import State, checked

# Ours. Up to FLAT_ROWS all are compared. A cell shows its newest CELL_ROWS, so that one prompt sent a thousand times costs no more.
CAPACITY = 100_000
FLAT_ROWS = 1_024
MAX_CELLS = 512
PROBED_CELLS = 8
CELL_ROWS = 256
PROBED_ROWS = 512

Vectors = npt.NDArray[np.float32]
Slots = npt.NDArray[np.int64]
Cells = list[dict[int, None]]  # of each leader its slots, in the order in which they were last written
Index = tuple[Vectors, Cells]  # swapped as one, for readers in another thread


class PromptStore:
    """`capacity` vectors of `dims` as int8 and the log length that each came to. Slots are given out in a ring."""

    def __init__(self, dims: int, capacity: int = CAPACITY, seed: int = 0) -> None:
        self.dims, self.capacity = dims, capacity
        self.added = 0
        self._seed = seed
        self._codes = np.zeros((capacity, dims), np.int8)
        self._scales = np.zeros(capacity, np.float32)  # 1 / norm of the codes; 0: an empty vector, near to nothing
        self._log_tokens = np.zeros(capacity, np.float32)
        self._index: Index = (np.zeros((0, dims), np.float32), [])
        self._cell_of = np.full(capacity, -1, np.int32)
        self._led_at = 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def slot(self, serial: int) -> int:
        return serial % self.capacity

    def add(self, vectors: Vectors, log_tokens: npt.NDArray[np.float64]) -> None:
        """New entries, [jobs, dims] and [jobs]; the oldest go where there is no room."""
        slots = (self.added + np.arange(len(vectors))) % self.capacity
        self._log_tokens[slots] = log_tokens
        self.added += len(vectors)
        self.put(slots, vectors)
        if self._leaders_are_old():
            self._lead()

    def put(self, slots: Slots, vectors: Vectors) -> None:
        """Overwrites the vectors of these slots."""
        largest = np.abs(vectors).max(axis=1, keepdims=True)
        codes = np.rint(vectors * (127 / np.maximum(largest, 1e-12)))
        self._codes[slots] = codes.astype(np.int8)
        norms = np.sqrt((codes * codes).sum(axis=1))
        self._scales[slots] = np.where(norms > 0, 1 / np.maximum(norms, 1e-12), 0)
        leaders, cells = self._index
        if cells:
            for slot, cell in zip(slots.tolist(), _nearest(vectors, leaders).tolist(), strict=True):
                self._move(cells, slot, cell)

    def search(self, vector: Vectors, count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Cosines and log lengths of about the `count` nearest entries to `vector` [dims], in no order."""
        norm = math.sqrt(float(vector @ vector))
        if not norm or not self.added:
            return np.zeros(0, np.float32), np.zeros(0, np.float32)
        slots = self._candidates(vector)
        cosines = (self._codes[slots].astype(np.float32) @ vector) * (self._scales[slots] / norm)
        if len(slots) > count:
            best = np.argpartition(cosines, len(slots) - count)[len(slots) - count :]
            slots, cosines = slots[best], cosines[best]
        return cosines, self._log_tokens[slots]

    def _candidates(self, vector: Vectors) -> Slots:
        leaders, cells = self._index
        if not cells:
            return np.arange(len(self))
        closeness = leaders @ vector
        probes = min(PROBED_CELLS, len(leaders))
        nearest = np.argpartition(closeness, len(leaders) - probes)[len(leaders) - probes :]
        found: list[int] = []
        for cell in nearest[np.argsort(-closeness[nearest])].tolist():
            found += list(islice(reversed(cells[cell]), CELL_ROWS))  # one call into C: nobody writes in between
            if len(found) >= PROBED_ROWS:
                break
        return np.array(found[:PROBED_ROWS], np.int64)

    # ---- cells

    def _leaders_are_old(self) -> bool:
        """At twice the size, and once full at every turn of the ring."""
        return self.added > FLAT_ROWS and self.added >= min(2 * self._led_at, self._led_at + self.capacity)

    def _lead(self) -> None:
        """Draws leaders anew and sorts every entry into the cell of its nearest."""
        size = len(self)
        rng = np.random.default_rng((self._seed, self.added))
        chosen = rng.choice(size, min(MAX_CELLS, int(2 * math.sqrt(size))), replace=False)
        leaders = self._codes[chosen].astype(np.float32) * self._scales[chosen, None]
        cell_of = np.empty(size, np.int64)
        cells: Cells
        for start in range(0, size, 4096):
            part = slice(start, min(start + 4096, size))
            cell_of[part] = _nearest(self._codes[part].astype(np.float32), leaders)
        kept, cell_of = np.unique(cell_of, return_inverse=True)  # without leaders that another one stands before
        leaders, cells = leaders[kept], [{} for _ in kept]
        for slot, cell in zip(self._by_age(), cell_of[self._by_age()].tolist(), strict=True):
            cells[cell][slot] = None
        self._cell_of[:size] = cell_of
        self._index, self._led_at = (leaders, cells), self.added

    def _by_age(self) -> list[int]:
        first = self.added % self.capacity if self.added > self.capacity else 0
        return [*range(first, len(self)), *range(first)]

    def _move(self, cells: Cells, slot: int, cell: int) -> None:
        old = int(self._cell_of[slot])
        if old >= 0:
            del cells[old][slot]
        cells[cell][slot] = None
        self._cell_of[slot] = cell

    def state(self) -> State:
        size, (leaders, cells) = len(self), self._index
        return {
            "added": np.array([self.added, self._led_at]),
            "codes": self._codes[:size],
            "scales": self._scales[:size],
            "log_tokens": self._log_tokens[:size],
            "leaders": leaders,
            "cell_sizes": np.array([len(cell) for cell in cells], np.int64),
            "cell_slots": np.array([slot for cell in cells for slot in cell], np.int64),
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raises ValueError where dims or capacity differ, or a cell holds what is not there."""
        added, led_at = state["added"].tolist()
        size = min(added, self.capacity)
        leaders, sizes, slots = state["leaders"], state["cell_sizes"], state["cell_slots"]
        every = np.arange(size if len(sizes) else 0)
        if leaders.shape != (len(sizes), self.dims) or sizes.sum() != len(slots) or (np.sort(slots) != every).any():
            raise ValueError(f"{len(sizes)} cells of {len(slots)} entries do not fit {size} entries")
        self._codes[:size] = checked(state, "codes", self._codes[:size])
        self._scales[:size] = checked(state, "scales", self._scales[:size])
        self._log_tokens[:size] = checked(state, "log_tokens", self._log_tokens[:size])
        self._cell_of[slots] = np.repeat(np.arange(len(sizes)), sizes)
        parts = np.split(slots, np.cumsum(sizes)[:-1]) if len(sizes) else []
        self._index = (leaders.copy(), [dict.fromkeys(part.tolist()) for part in parts])
        self.added, self._led_at = added, led_at


def _nearest(vectors: Vectors, leaders: Vectors) -> npt.NDArray[np.int64]:
    """[vectors] the number of the leader nearest to each."""
    nearest: npt.NDArray[np.int64] = (vectors @ leaders.T).argmax(axis=1)
    return nearest
