"""A linear model of sparse rows, trained by AdaGrad (Duchi et al., 2011). It knows nothing of what it predicts: losses are its users'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import Floats, State, checked
from .features import COLUMNS, Rows


class SparseLinear:
    """output = values . weights + bias. `rate` is the step of a full batch."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.bias = 0.0
        self.weights = np.zeros(COLUMNS, np.float32)
        self._squares = np.full(COLUMNS, 1e-6, np.float32)

    def outputs(self, rows: Rows) -> Floats:
        """[rows]"""
        products = rows.values * self.weights[rows.columns]
        return np.add.reduceat(products, rows.starts, dtype=np.float64) + self.bias

    def step(self, rows: Rows, slopes: Floats, share: float = 1.0) -> None:
        """One step against `slopes` [rows], the derivatives of the batch's loss by its outputs; `share` scales the step."""
        columns, where = np.unique(rows.columns, return_inverse=True)
        gradient = np.bincount(where, weights=rows.values * slopes[rows.row_numbers]).astype(np.float32)
        squares = self._squares[columns] + gradient * gradient
        self._squares[columns] = squares
        self.weights[columns] -= np.float32(self.rate * share) * gradient / np.sqrt(squares)
        self.bias -= self.rate * share * float(slopes.sum())

    def state(self) -> State:
        return {"weights": self.weights, "squares": self._squares, "bias": np.array(self.bias)}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        self.weights = checked(state, "weights", self.weights)
        self._squares = checked(state, "squares", self._squares)
        self.bias = float(checked(state, "bias", np.array(0.0)))
