"""Whether an order is worth following: how often it agreed with what jobs turned out to cost. Knows nothing of jobs or predictors."""

from __future__ import annotations

from collections import deque

WINDOW = 128
LEAST_JOBS = 24
DISTRUST_BELOW = 0.05
TRUST_ABOVE = 0.15


class Trust:
    """Kendall's tau between expected and actual costs of the newest jobs that ended, and a verdict with hysteresis.

    Trusts until LEAST_JOBS have ended. The window and the thresholds are ours: tau of random order over 128 jobs has a standard
    deviation of 0.06, useful predictors have 0.4 and more.
    """

    def __init__(self) -> None:
        self.trusted = True
        self._costs: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._skipped = 0

    def add(self, expected: float, actual: float) -> bool:
        """One job has ended. Returns whether the verdict changed. O(WINDOW)."""
        self._costs.append((expected, actual))
        if len(self._costs) < LEAST_JOBS or (len(self._costs) == WINDOW and not self._is_due()):
            return False
        tau, before = self.tau(), self.trusted
        self.trusted = tau > (DISTRUST_BELOW if before else TRUST_ABOVE)
        return self.trusted is not before

    def tau(self) -> float:
        """Agreeing less disagreeing pairs, by all pairs; a tie in what was expected counts as neither. 0 for fewer than two jobs."""
        costs = list(self._costs)
        agreement = sum(
            (one[0] < two[0]) - (one[0] > two[0]) if one[1] < two[1] else (one[0] > two[0]) - (one[0] < two[0])
            for i, one in enumerate(costs)
            for two in costs[:i]
            if one[1] != two[1]
        )
        return 2 * agreement / max(1, len(costs) * (len(costs) - 1))

    def _is_due(self) -> bool:
        """A full window is judged once in a quarter of it: all pairs are compared."""
        self._skipped = (self._skipped + 1) % (WINDOW // 4)
        return self._skipped == 0
