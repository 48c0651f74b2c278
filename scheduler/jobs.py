"""The state machine of one job. Pure: no I/O, no clock (`now` is passed in, in seconds), no knowledge of other jobs or messages.

    QUEUED --place--> RESERVING --reserved--> PREFILLING --prefilled--> DECODING --decoded--> ENDED
     ^ |                  |                       |  ^                    | |
     | |                  |                       |  +-- no decode worker: straight from QUEUED
     | |                  |                       |                       | |
     +-+------------------+-----------------------+------- requeued ------+ |
       |                  |                       |                         |
       +------------------+-----------------------+-------- end() ----------+--> RELEASING --dropped--> ENDED

A job ends with one `Outcome`, the first. It is in RELEASING while a worker may still hold something of it, and every state but
ENDED has a deadline. A request's own deadline to token 1 holds until prefill may begin: from then on token 1 may go out before the
scheduler hears of it. A preempted job whose pages were dropped is queued again (`requeued`), with the deadline that it had: from
token 1 to the last it has the time for decoding, however often it starts anew. A method that gets word which does not fit the state
(late, twice, from another worker) changes nothing and returns False. The prefill and the decode worker report over different
connections, so `decoded` may come before `prefilled`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from packhorse.errors import PackhorseError
from scheduler.forecast import Forecast
from scheduler.progress import Progress
from transport.messages import Job, JobStats, KVLayout, Replay, Role
from transport.page_digest import PageDigests


class JobState(StrEnum):
    QUEUED = "queued"
    RESERVING = "reserving"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    RELEASING = "releasing"
    ENDED = "ended"


class Swap(StrEnum):
    """Where a job's pages are on its decode worker: on the device, leaving it, out in host memory, or returning; or being dropped.

    On their way they take room in both: memory is free once a copy is done.
    """

    IN = "in"
    DROPPING = "dropping"
    LEAVING = "leaving"
    OUT = "out"
    RETURNING = "returning"

    @property
    def on_device(self) -> bool:
        return self is not Swap.OUT

    @property
    def on_host(self) -> bool:
        return self is not Swap.IN and self is not Swap.DROPPING


@dataclass(frozen=True)
class Outcome:
    """How a job ended: done, cancelled (nobody waits any more), or failed with `error`."""

    kind: str
    error: PackhorseError | None = None

    @property
    def label(self) -> str:
        """done, cancelled, or failed:<code>; the names under which jobs are counted."""
        return f"failed:{self.error.code}" if self.error else self.kind


NOTHING = JobStats()  # of a job before any worker tells of it
DONE = Outcome("done")
CANCELLED = Outcome("cancelled")


def failed(error: PackhorseError) -> Outcome:
    return Outcome("failed", error)


@dataclass(frozen=True)
class StateSeconds:
    """How long a job may stay in each state."""

    queued: float
    reserving: float
    prefilling: float
    decoding: float
    releasing: float

    def of(self, state: JobState) -> float:
        seconds: float = getattr(self, state.value)
        return seconds


@dataclass(frozen=True)
class ToolPause:
    """The job will stop for a tool call after its first `after_tokens`, for `seconds` (expected), and go on with the answer's tokens."""

    after_tokens: int
    seconds: float
    returned_tokens: int = 0


@dataclass(eq=False)
class TrackedJob:
    """One job as the scheduler tracks it, from Submit until nothing of it is left anywhere.

    `pages` is its reservation on a decode worker (0 without one). `holds` are the workers that may hold something of it; the
    value tells whether the worker has been told of the job, so that it must be asked to release it. `run_pages` are the device
    pages that it needs to go on decoding; `forecast`, `progress` and `pause` are what policies judge by; `context_tokens` is the
    mean of its context over its predicted life. `held_pages` of the prompt its decode worker holds already: they are not sent.
    `replay` is set once the job was dropped.
    """

    job: Job
    gateway: bytes
    pages: int
    limits: StateSeconds
    submitted_at: float
    job_id: str = field(init=False)
    prompt_tokens: int = field(init=False)
    total_tokens: int = field(init=False)  # the longest that the sequence can become
    needs_decode: bool = field(init=False)  # whether it can outlive token 1, which the prefill worker samples
    state: JobState = JobState.QUEUED
    deadline: float = field(init=False)
    prefill_worker: str = ""
    decode_worker: str = ""
    queue_seconds: float = 0.0
    holds: dict[str, bool] = field(default_factory=dict)
    outcome: Outcome | None = None
    ended_by_prefill: bool = False
    stats: JobStats = NOTHING
    forecast: Forecast = field(init=False)
    context_tokens: int = field(init=False)
    progress: Progress = field(init=False)
    run_pages: int = field(init=False)
    held_pages: int = 0
    replay: Replay | None = None
    swap: Swap = Swap.IN
    preemptions: int = 0
    pause: ToolPause | None = field(init=False)  # None once it is over
    paused: bool = False  # it stands still for its tool
    pause_until: float | None = None  # once it has come to its pause; it may do so anew, after it was dropped
    _queued_at: float = field(init=False)
    _queued_before: float = 0.0  # seconds in the queue in earlier attempts
    _decode_by: float | None = None
    _digests: tuple[KVLayout, PageDigests] | None = None

    def __post_init__(self) -> None:
        most = self.job.sampling.max_tokens
        self.job_id, self.prompt_tokens = self.job.job_id, len(self.job.prompt)
        self.total_tokens, self.needs_decode = self.prompt_tokens + most, most > 1
        self._enter(JobState.QUEUED, self.submitted_at)
        self._queued_at = self.submitted_at
        self.believe(Forecast.unknown(most))
        self.progress = Progress(self.submitted_at)
        self.run_pages = self.pages
        declared = self.job.tool_pause
        self.pause = ToolPause(declared.after_tokens, declared.seconds) if declared is not None else None

    @property
    def priority(self) -> int:
        """Its class: jobs of a higher one go first."""
        return self.job.priority

    @property
    def first_token_by(self) -> float:
        """When its request gives up waiting for token 1; infinite where it says nothing."""
        seconds = self.job.max_ttft_seconds
        return self.submitted_at + seconds if seconds is not None else math.inf

    def context_at(self, role: Role) -> int:
        """Tokens that a worker of the role must be able to hold; at the prefill worker those are the prompt and token 1."""
        return self.total_tokens if role == "decode" else self.prompt_tokens + 1

    def page_digests(self, layout: KVLayout) -> PageDigests:
        """Of the prompt's whole pages."""
        if self._digests is None or self._digests[0] != layout:
            self._digests = layout, PageDigests(self.job, layout)
        return self._digests[1]

    def believe(self, forecast: Forecast) -> None:
        """What is predicted before the job is queued. Later `forecast` may be refined, what workers are counted to hold may not."""
        self.forecast = forecast
        self.context_tokens = self.prompt_tokens + round(forecast.quantile(0.5) / 2)

    def place(self, prefill_worker: str, decode_worker: str, now: float) -> None:
        """The pair is chosen (`decode_worker` empty: none needed). The first of them to be told is told now."""
        assert self.state is JobState.QUEUED, self.state
        assert bool(decode_worker) == self.needs_decode
        self.prefill_worker, self.decode_worker = prefill_worker, decode_worker
        self.holds = {prefill_worker: not decode_worker}
        self.queue_seconds = self._queued_before + now - self._queued_at
        if decode_worker:
            self.holds[decode_worker] = True
        self._enter(JobState.RESERVING if decode_worker else JobState.PREFILLING, now)

    def reserved(self, worker_id: str, now: float) -> bool:
        """The decode worker holds the pages: the prefill worker is told now."""
        if self.state is not JobState.RESERVING or worker_id != self.decode_worker:
            return False
        self.queue_seconds = self._queued_before + now - self._queued_at
        self.holds[self.prefill_worker] = True
        self._enter(JobState.PREFILLING, now)
        return True

    def prefilled(self, worker_id: str, ended: bool, stats: JobStats, now: float) -> bool:
        """Token 1 is out and the prefill worker holds nothing; `ended` when token 1 was the last. The caller then calls `end`."""
        if self.state not in (JobState.PREFILLING, JobState.RELEASING) or worker_id != self.prefill_worker:
            return False
        if not self.dropped(worker_id):
            return False
        self.stats = merge(self.stats, stats.after(self.replay.stats) if self.replay is not None else stats)
        self.ended_by_prefill = ended
        if self.state is JobState.PREFILLING and not ended and self.decode_worker:
            self._enter(JobState.DECODING, now)
            self._decode_by = self.deadline
        return True

    def requeued(self, worker_id: str, replay: Replay, now: float) -> bool:
        """The decode worker has dropped the job, which waits for a pair again. Its stats go on from those of this attempt."""
        if self.state is not JobState.DECODING or worker_id != self.decode_worker or not self.dropped(worker_id):
            return False
        self.replay = replay.model_copy(update={"stats": merge(self.stats, replay.stats)})
        self.stats, self.swap, self.held_pages, self.paused = NOTHING, Swap.IN, 0, False
        self.prefill_worker = self.decode_worker = ""
        self._queued_before, self._queued_at = self.queue_seconds, now
        self.progress.drop(len(replay.tokens))
        self.state = JobState.QUEUED
        return True

    def decoded(self, worker_id: str, stats: JobStats) -> bool:
        """The last token is out and the decode worker holds nothing. The caller then calls `end`."""
        active = (JobState.PREFILLING, JobState.DECODING, JobState.RELEASING)
        if self.state not in active or worker_id != self.decode_worker or not self.dropped(worker_id):
            return False
        self.stats = merge(self.stats, stats)
        return True

    def dropped(self, worker_id: str) -> bool:
        """The worker holds nothing of the job any more. Ends a job that was only waiting for that."""
        if self.holds.pop(worker_id, None) is None:
            return False
        if self.state is JobState.RELEASING and not self.holds:
            self.state = JobState.ENDED
        return True

    def end(self, outcome: Outcome, now: float) -> list[str]:
        """The job has this outcome, unless it has one already. Returns the workers that hold something of it and know of it.

        Those that were never told hold nothing. With nobody left the job is ENDED, else RELEASING.
        """
        if self.outcome is not None:
            return []
        self.outcome = outcome
        self.holds = {worker_id: told for worker_id, told in self.holds.items() if told}
        self._enter(JobState.RELEASING if self.holds else JobState.ENDED, now)
        return list(self.holds)

    def final_stats(self) -> JobStats:
        """What the job cost in all; no decode worker is named when token 1 ended it."""
        names = {
            "prefill_worker": self.prefill_worker,
            "decode_worker": "" if self.ended_by_prefill else self.decode_worker,
        }
        own = {"prompt_tokens": self.prompt_tokens, "queue_seconds": self.queue_seconds}
        return self.stats.model_copy(update={**names, **own})

    @property
    def overdue(self) -> str:
        """What is to be said once its deadline has passed."""
        held = f" at {' and '.join(self.holds)}" if self.holds else ""
        if self.deadline == self.first_token_by:
            own = f"max_ttft_seconds={self.job.max_ttft_seconds:g}"
            return f"the job was still {self.state.value}{held} when its {own} had passed"
        if self.deadline == self._decode_by and self.state is not JobState.DECODING:
            return f"the job was decoding, and then preempted and {self.state.value}{held}, for more than {self.limits.decoding:g} s"
        return f"the job was {self.state.value}{held} for more than {self.limits.of(self.state):g} s"

    def _enter(self, state: JobState, now: float) -> None:
        self.state = state
        if state is not JobState.ENDED:
            self.deadline = min(now + self.limits.of(state), self._by(state))

    def _by(self, state: JobState) -> float:
        """When it is overdue in that state however long it has been in it: for want of token 1 or, once that was out, of the last."""
        if self._decode_by is not None and state is not JobState.RELEASING:
            return self._decode_by
        return self.first_token_by if state in (JobState.QUEUED, JobState.RESERVING) else math.inf


def merge(one: JobStats, two: JobStats) -> JobStats:
    """What both workers know of a job; a count that one of them lacks is 0 or empty there."""
    if one is NOTHING:
        return two
    first, second = vars(one), vars(two)
    return JobStats(**{name: max(first[name], second[name]) for name in first})
