"""When each prefill worker will have computed what it holds: a clock for each, moved on by the work that comes and corrected by what ends.

A worker reports nothing between the start and the end of a prompt, so what is left of the one that it computes now shows only as time.
Knows nothing of jobs or of how the seconds of their work are predicted.
"""

from __future__ import annotations


class PrefillQueues:
    """Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._free_at: dict[str, float] = {}
        self._outstanding: dict[str, float] = {}

    def update(self, worker_id: str, outstanding_seconds: float, now: float) -> None:
        """The prompts that the worker holds take that long in all: what is more than before came now, and nothing can take longer."""
        came = max(0.0, outstanding_seconds - self._outstanding.get(worker_id, 0.0))
        free_at = max(now, self._free_at.get(worker_id, now)) + came
        self._free_at[worker_id] = min(free_at, now + outstanding_seconds)
        self._outstanding[worker_id] = outstanding_seconds

    def free_at(self, worker_id: str) -> float:
        """When a prompt that came now could start; a time that has passed means at once."""
        return self._free_at.get(worker_id, 0.0)

    def wait(self, worker_id: str, now: float) -> float:
        """Seconds until a prompt that came now could start."""
        seconds = self._free_at.get(worker_id, 0.0) - now
        return seconds if seconds > 0.0 else 0.0

    def forget(self, worker_id: str) -> None:
        """The worker is gone; an unknown one changes nothing."""
        self._free_at.pop(worker_id, None)
        self._outstanding.pop(worker_id, None)
