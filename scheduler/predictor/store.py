"""Past prompts as short vectors, and the ones nearest to a new one in well under a millisecond: a bounded index by cells.

Cells are the neighbourhoods of leaders, vectors drawn from the stored ones (cluster pruning: Chierichetti et al., 2007); the search
looks into the cells of the nearest leaders alone, and into no more than PROBED_ROWS vectors. The oldest entry makes room for a new one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import State, checked, checked_counts
from .features import distinct

# Ours. Up to FLAT_ROWS all are compared. A cell shows the newest CELL_ROWS that were put into it, so that one prompt sent ten
# thousand times costs no more than one sent twice.
CAPACITY = 100_000
FLAT_ROWS = 1_024
MAX_CELLS = 512
PROBED_CELLS = 8
CELL_ROWS = 384
PROBED_ROWS = 512

Vectors = npt.NDArray[np.float32]
Slots = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Index:
    """Swapped as a whole, for readers in another thread. A slot in a ring counts only where it is in that cell still.

    leaders: [cells, dims]; rings: [cells, CELL_ROWS] slots, -1 where none; puts: [cells] into each ring ever; cell_of: [capacity].
    """

    leaders: Vectors
    rings: npt.NDArray[np.int32]
    puts: npt.NDArray[np.int64]
    cell_of: npt.NDArray[np.int32]

    @classmethod
    def empty(cls, cells: int, dims: int, capacity: int) -> Index:
        rings = np.full((cells, CELL_ROWS), -1, np.int32)
        leaders = np.zeros((cells, dims), np.float32)
        return cls(leaders, rings, np.zeros(cells, np.int64), np.full(capacity, -1, np.int32))

    def put(self, slot: int, cell: int) -> None:
        self.cell_of[slot] = cell
        self.rings[cell, self.puts[cell] % CELL_ROWS] = slot
        self.puts[cell] += 1

    def near(self, vector: Vectors) -> Slots:
        """At most PROBED_ROWS slots of the cells nearest to `vector`, the newest of each; ascending."""
        closeness = self.leaders @ vector
        probes = min(PROBED_CELLS, len(closeness))
        cells = closeness.argpartition(len(closeness) - probes)[len(closeness) - probes :]
        found, left = [], PROBED_ROWS
        for cell in cells[(-closeness[cells]).argsort()].tolist():
            found.append(self._members(cell)[:left])
            left -= len(found[-1])
            if not left:
                break
        return distinct(np.concatenate(found)).astype(np.int64)

    def _members(self, cell: int) -> npt.NDArray[np.int32]:
        """What was put into the cell and is in it still, newest first."""
        ring, puts = self.rings[cell], int(self.puts[cell])
        newest = puts % CELL_ROWS
        ages = (ring[:newest][::-1], ring[newest:][::-1]) if puts >= CELL_ROWS else (ring[:puts][::-1],)
        slots = np.concatenate(ages)
        members: npt.NDArray[np.int32] = slots[self.cell_of[slots] == cell]
        return members


class PromptStore:
    """`capacity` vectors of `dims` as int8 and the log length that each came to, or was cut off at. Slots are given out in a ring."""

    def __init__(self, dims: int, capacity: int = CAPACITY, seed: int = 0) -> None:
        self.dims, self.capacity = dims, capacity
        self.added = 0
        self._seed = seed
        self._codes = np.zeros((capacity, dims), np.int8)
        self._scales = np.zeros(capacity, np.float32)  # 1 / norm of the codes; 0: an empty vector, near to nothing
        self._log_tokens = np.zeros(capacity, np.float32)
        self._cut = np.zeros(capacity, np.bool_)
        self._index = Index.empty(0, dims, capacity)
        self._led_at = 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def slot(self, serial: int) -> int:
        return serial % self.capacity

    def add(
        self, vectors: Vectors, log_tokens: npt.NDArray[np.float64], cut: npt.NDArray[np.bool_] | bool = False
    ) -> None:
        """New entries, [jobs, dims], [jobs] and [jobs], or the same for all of them; the oldest go where there is no room."""
        slots = (self.added + np.arange(len(vectors))) % self.capacity
        self._log_tokens[slots], self._cut[slots] = log_tokens, cut
        self._index.cell_of[slots] = -1
        self.put(slots, vectors)
        self.added += len(vectors)
        if self._leaders_are_old():
            self._lead()

    def put(self, slots: Slots, vectors: Vectors) -> None:
        """Overwrites the vectors of these slots, and moves them to other cells where they belong there now."""
        largest = np.abs(vectors).max(axis=1, keepdims=True)
        codes = np.rint(vectors * (127 / np.maximum(largest, 1e-12)))
        self._codes[slots] = codes.astype(np.int8)
        norms = np.sqrt((codes * codes).sum(axis=1))
        self._scales[slots] = np.where(norms > 0, 1 / np.maximum(norms, 1e-12), 0)
        index = self._index
        if len(index.leaders):
            cells = _nearest(vectors, index.leaders)
            for number in np.flatnonzero(index.cell_of[slots] != cells).tolist():
                index.put(int(slots[number]), int(cells[number]))

    def search(
        self, vector: Vectors, count: int, believed: float = math.inf
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Cosines and log lengths of about the `count` nearest entries to `vector` [dims], in no order.

        Without those that were cut off below `believed`, a log length: they only say that it may be right.
        """
        norm = math.sqrt(float(vector @ vector))
        if not norm or not self.added:
            return np.zeros(0, np.float32), np.zeros(0, np.float32)
        index = self._index
        slots = index.near(vector) if len(index.leaders) else np.arange(len(self))
        cut = self._cut[slots]
        if cut.any():
            slots = slots[~cut | (self._log_tokens[slots] > believed)]
        codes = self._codes.take(slots, axis=0).astype(np.float32)
        cosines = (codes @ vector) * (self._scales[slots] / norm)
        if len(slots) > count:
            best = cosines.argpartition(len(slots) - count)[len(slots) - count :]
            slots, cosines = slots[best], cosines[best]
        return cosines, self._log_tokens[slots]

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
        cell_of = np.concatenate([_nearest(part, leaders) for part in self._parts(size)])
        kept, cell_of = np.unique(cell_of, return_inverse=True)  # without leaders that another one stands before
        index = Index.empty(len(kept), self.dims, self.capacity)
        index.leaders[:] = leaders[kept]
        oldest = self.added % self.capacity if self.added > self.capacity else 0
        for slot in (*range(oldest, size), *range(oldest)):
            index.put(slot, cell_of[slot])
        self._index, self._led_at = index, self.added

    def _parts(self, size: int) -> Iterator[Vectors]:
        return (self._codes[start : min(start + 4096, size)].astype(np.float32) for start in range(0, size, 4096))

    def state(self) -> State:
        size, index = len(self), self._index
        return {
            "added": np.array([self.added, self._led_at]),
            "codes": self._codes[:size],
            "scales": self._scales[:size],
            "log_tokens": self._log_tokens[:size],
            "cut": self._cut[:size],
            "leaders": index.leaders,
            "rings": index.rings,
            "puts": index.puts,
            "cell_of": index.cell_of,
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raises ValueError where dims or capacity differ, or a cell holds what is not there."""
        added, led_at = checked_counts(state, "added", 2)
        size, cells = min(added, self.capacity), len(state["leaders"])
        self._codes[:size] = checked(state, "codes", self._codes[:size])
        self._scales[:size] = checked(state, "scales", self._scales[:size])
        self._log_tokens[:size] = checked(state, "log_tokens", self._log_tokens[:size])
        self._cut[:size] = checked(state, "cut", self._cut[:size])
        like = Index.empty(cells, self.dims, self.capacity)
        index = Index(**{key: checked(state, key, getattr(like, key)) for key in vars(like)})
        if index.rings.max(initial=-1) >= size or index.cell_of.max(initial=-1) >= max(cells, 1):
            raise ValueError(f"cells hold entries beyond the {size} that there are")
        self._index, self.added, self._led_at = index, added, led_at


def _nearest(vectors: Vectors, leaders: Vectors) -> npt.NDArray[np.int64]:
    """[vectors] the number of the leader nearest to each."""
    nearest: npt.NDArray[np.int64] = (vectors @ leaders.T).argmax(axis=1)
    return nearest
