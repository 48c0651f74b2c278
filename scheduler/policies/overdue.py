"""Turns of jobs that have waited for too long: they go first, but hold no more than a share of the places. Knows nothing of ranks."""

from __future__ import annotations

SHARE = 0.5


class Overdue:
    """Counts jobs that are placed, and those among them that were placed or called back because they were overdue.

    A turn is open while the latter are fewer than `share` of all. Without the limit an overload makes every job overdue, and any
    order that of arrival; with it overdue jobs are served as by first come, first served on `share` of the cluster.
    """

    def __init__(self, share: float = SHARE) -> None:
        self.share = share
        self._placed: set[str] = set()
        self._favoured: set[str] = set()

    @property
    def turn(self) -> bool:
        """Whether an overdue job may go first now."""
        return len(self._favoured) < self.share * (len(self._placed) + 1)

    def is_favoured(self, job_id: str) -> bool:
        return job_id in self._favoured

    def place(self, job_id: str) -> None:
        """The job has left the queue for a worker."""
        self._placed.add(job_id)

    def favour(self, job_id: str) -> None:
        """The job takes a turn, and goes first until it ends."""
        self._favoured.add(job_id)

    def forget(self, job_id: str) -> None:
        """The job has ended; an unknown one changes nothing."""
        self._placed.discard(job_id)
        self._favoured.discard(job_id)
