"""What a scheduling policy is: the order in which queued jobs are placed. It knows nothing of workers, messages or time passing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from scheduler.jobs import TrackedJob


class Policy(ABC):
    """Holds the queued jobs. The scheduler asks for `head` at every event and removes it once it is placed.

    The job at the head blocks the others until a pair fits: a policy that lets jobs overtake changes its head.
    """

    name: ClassVar[str]

    @abstractmethod
    def add(self, job: TrackedJob, now: float) -> None:
        """`job` was just queued. It is not in the policy yet."""

    @abstractmethod
    def remove(self, job_id: str) -> None:
        """The job left the queue: placed, cancelled or failed. A job that is not in the policy changes nothing."""

    @abstractmethod
    def head(self, now: float) -> TrackedJob | None:
        """The job to place next; None when the queue is empty, and only then. Asking changes nothing."""

    @abstractmethod
    def __len__(self) -> int:
        """Jobs in the queue."""
