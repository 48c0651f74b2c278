"""Predicted against actual times: the newest relative errors of one prediction, and their summary for metrics."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorSummary:
    """Of the newest `count` predictions: (predicted - actual) / actual. All 0 while `count` is 0.

    `bias` is the median with its sign, `p50` and `p90` are quantiles of the absolute error. `total` counts all since the start.
    """

    count: int
    total: int
    bias: float
    p50: float
    p90: float


class ErrorWindow:
    """Keeps the newest `size` errors."""

    def __init__(self, size: int = 256) -> None:
        self._errors: deque[float] = deque(maxlen=size)
        self._total = 0
        self._summary: ErrorSummary | None = ErrorSummary(0, 0, 0.0, 0.0, 0.0)  # asked for far oftener than it changes

    def add(self, predicted: float, actual: float) -> None:
        """`actual` must be positive."""
        self._errors.append((predicted - actual) / actual)
        self._total += 1
        self._summary = None

    def summary(self) -> ErrorSummary:
        if self._summary is None:
            self._summary = self._summarize()
        return self._summary

    def _summarize(self) -> ErrorSummary:
        signed, absolute = sorted(self._errors), sorted(map(abs, self._errors))
        return ErrorSummary(
            count=len(signed),
            total=self._total,
            bias=_quantile(signed, 0.5),
            p50=_quantile(absolute, 0.5),
            p90=_quantile(absolute, 0.9),
        )


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
