"""What a scheduling policy is: the order in which queued jobs are placed, and which jobs run on a decode worker.

A policy sees jobs (`TrackedJob`: forecast, progress, priority class, pages, tool pause) and a cost model's answers. It knows nothing
of messages, of workers beyond a `Room`, or of time passing: every time is passed in, in seconds on one clock that does not run
backwards. The same objects run live and simulated; one owner, no locks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from scheduler.cost import DEFAULT_PRIOR, WorkerCost
from scheduler.jobs import TrackedJob

PauseAction = Literal["preserve", "discard", "swap"]


class JobCost(Protocol):
    """What a policy asks of the cost model: the seconds of a typical worker. `scheduler.cost.WorkerCost` is one."""

    def prefill_seconds(self, tokens: int, cached_tokens: int = 0) -> float: ...

    def step_seconds(self, context_tokens: int, batch: int) -> float: ...


@dataclass(frozen=True, slots=True)
class Room:
    """What one decode worker can run at once: the pages of its device pool, and jobs in one step."""

    pages: int
    max_jobs: int


@dataclass(frozen=True, slots=True)
class RunPlan:
    """`run`: these jobs make every step until the next plan; together they fit the room.

    `wait`: all others, soonest first by estimated waiting time. Memory is taken from the last of them first and given back to the
    first of them first; a waiting job keeps its pages on the device as long as nobody needs the room.
    """

    run: tuple[TrackedJob, ...]
    wait: tuple[TrackedJob, ...]


class Policy(ABC):
    """Holds the queued jobs, and plans decode workers one by one.

    Queue: the scheduler asks for `head` at every event and removes it once it is placed. The job at the head blocks the others
    until a pair fits: a policy that lets jobs overtake changes its head.

    Decode worker: `plan` is asked where a queued job has no room, and where jobs are out, at every event there and every tick: not as
    long as all run. Steps are never interrupted. The caller keeps `job.progress` (generated tokens as reported, time in service, since
    when it runs or waits) and `job.run_pages` (device pages that it needs until the next plan) up to date before it asks, and carries
    the plan out with `progress.run(now)` and `progress.wait(now)`.

    A policy may keep state by job id; `forget` drops it. Without predictions every job's forecast is its max_tokens.
    """

    name: ClassVar[str]
    preempts: ClassVar[bool] = False  # whether a plan may stop a running job though the room holds it

    def __init__(self, cost: JobCost | None = None) -> None:
        self.cost: JobCost = cost or WorkerCost.of(DEFAULT_PRIOR)
        self.room: Room | None = (
            None  # of the largest decode worker, or the last that was; kept by the scheduler; None before the first
        )

    # ---- the queue

    @abstractmethod
    def add(self, job: TrackedJob, now: float) -> None:
        """`job` was just queued. It is not in the policy yet. Its forecast does not change while it is queued."""

    @abstractmethod
    def remove(self, job_id: str) -> None:
        """The job left the queue: placed, cancelled or failed. A job that is not in the policy changes nothing."""

    @abstractmethod
    def head(self, now: float) -> TrackedJob | None:
        """The job to place next; None when the queue is empty, and only then. Asking again at the same time changes nothing."""

    @abstractmethod
    def __len__(self) -> int:
        """Jobs in the queue."""

    @abstractmethod
    def queued(self) -> Iterable[TrackedJob]:
        """All jobs in the queue, in order of arrival."""

    @abstractmethod
    def upcoming(self, now: float) -> Iterator[TrackedJob]:
        """The queued jobs from `head` on, in the order in which they would be placed if none came and time stood still.

        Of more than the head it is an estimate where a policy's next choice depends on what was placed. Taking the first few is cheap.
        """

    @abstractmethod
    def ahead(self, job: TrackedJob, now: float) -> Iterable[TrackedJob]:
        """The queued jobs that would go before `job`, which is not queued, if it came now; later ones may still overtake it."""

    # ---- a decode worker

    @abstractmethod
    def plan(self, jobs: Sequence[TrackedJob], room: Room, now: float) -> RunPlan:
        """Which of `jobs`, all those whose prefill is complete on one decode worker, run from now on.

        Every job is in the plan once. As long as any job fits the room alone, at least one runs. Running jobs that have outgrown
        the room are stopped by every policy; `preempts` tells whether others are.
        """

    def pause_action(self, job: TrackedJob, others_tokens: int) -> PauseAction:
        """What becomes of the pages of `job` during its declared tool pause; `others_tokens` are those of the jobs beside it."""
        return "preserve"

    def observe(self, job: TrackedJob, output_tokens: int, now: float) -> None:
        """The job ended by itself with that many tokens: what its forecast was worth. `forget` follows."""
        return

    def forget(self, job_id: str) -> None:
        """The job has ended: drop what is kept of it. An unknown one changes nothing."""
        return


def fill(ordered: Iterable[TrackedJob], room: Room, *, strict: bool = False) -> RunPlan:
    """Takes jobs from the best on, as long as they fit; `strict`: nobody runs past the first that does not."""
    run: list[TrackedJob] = []
    wait: list[TrackedJob] = []
    pages, full = room.pages, False
    for job in ordered:
        if full or len(run) >= room.max_jobs or job.run_pages > pages:
            wait.append(job)
            full = full or strict
        else:
            run.append(job)
            pages -= job.run_pages
    return RunPlan(tuple(run), tuple(wait))
