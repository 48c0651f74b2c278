"""The gateway and the scheduler: jobs in, how they end, and what the scheduler knows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import ErrorInfo, Model
from .jobs import Job, JobStats
from .workers import WorkerInfo, WorkerLoad


class Submit(Model):
    kind: Literal["submit"] = "submit"
    job: Job


class Cancel(Model):
    """Gateway -> scheduler: nobody waits for this job any more. Unknown jobs are ignored. No answer."""

    kind: Literal["cancel"] = "cancel"
    job_id: str
    reason: str


class Placed(Model):
    """Scheduler -> gateway: the pair that was chosen."""

    kind: Literal["placed"] = "placed"
    job_id: str
    prefill_worker: str
    decode_worker: str
    queue_seconds: float


class JobFailed(Model):
    """Scheduler -> gateway: the job ended with an error; no more tokens come."""

    kind: Literal["job_failed"] = "job_failed"
    job_id: str
    error: ErrorInfo


class JobEnded(Model):
    """Scheduler -> gateway: the job ended well and holds nothing anywhere."""

    kind: Literal["job_ended"] = "job_ended"
    job_id: str
    stats: JobStats


class StatusRequest(Model):
    kind: Literal["status_request"] = "status_request"


class WorkerStatus(Model):
    info: WorkerInfo
    load: WorkerLoad
    jobs: int = Field(description="jobs that the scheduler has placed here")
    reserved_pages: int = 0
    heartbeat_age_seconds: float


class PredictionErrors(Model):
    """(predicted - actual) / actual of the newest `count` predictions of one kind; `total` since start. All 0 while there are none."""

    count: int
    total: int
    bias: float = Field(description="their median, with its sign")
    p50: float = Field(description="of the absolute errors")
    p90: float


class Status(Model):
    """What the scheduler knows; the gateway asks for it every second or so, for /health and /metrics."""

    kind: Literal["status"] = "status"
    epoch: str
    policy: str
    workers: tuple[WorkerStatus, ...]
    jobs_by_state: dict[str, int]
    jobs_total: dict[str, int] = Field(description="since start, by outcome: done, failed:<code>, cancelled")
    queue_seconds: float = Field(default=0.0, description="how long the job that waits longest has waited")
    preemptions_total: int = Field(default=0, description="since start")
    predictions: dict[str, PredictionErrors] = Field(
        default_factory=dict, description="by kind: output_tokens, completion, prefill, decode (steps), transfer"
    )


class Explain(Model):
    """Gateway -> scheduler: how were these jobs scheduled? `job_id` names a job, or a completion and so all its jobs; empty: the
    `newest` so many. Answered by Explanations.
    """

    kind: Literal["explain"] = "explain"
    job_id: str = ""
    newest: int = Field(default=0, ge=0)


class Eviction(Model):
    """How a running job gave way, and the estimated seconds of both ways to do so."""

    worker_id: str
    way: Literal["swap", "drop"]
    swap_seconds: float | None = Field(description="to host memory and back; None: it was full")
    drop_seconds: float = Field(description="to compute again what was dropped")
    generated_tokens: int = Field(description="as last reported")


class Explanation(Model):
    """Of one job, as far as it has come. Times are the scheduler's, in seconds."""

    job_id: str
    policy: str = ""
    placement: str = ""
    prompt_tokens: int = 0
    max_tokens: int = 0
    priority: int = 0
    max_ttft_seconds: float | None = Field(default=None, description="that the request allows; None: it says nothing")
    pages: int = Field(default=0, description="reserved on the decode worker")
    predicted_tokens: tuple[float, ...] = Field(default=(), description="output lengths at the levels")
    levels: tuple[float, ...] = ()
    predicted_by: str = Field(default="", description="what the prediction rests on")
    current_tokens: tuple[float, ...] = Field(
        default=(), description="the same as policies read it now that some were generated; only while it is under way"
    )
    refined: bool = Field(default=False, description="scores from hidden states are in current_tokens")
    prefill_worker: str = ""
    decode_worker: str = ""
    queue_seconds: float | None = Field(default=None, description="None: not placed yet")
    expected_seconds: float = Field(
        default=0.0, description="from placement to the last token, as predicted; 0: was not"
    )
    why: str = ""
    preemptions: int = 0
    evictions: tuple[Eviction, ...] = Field(default=(), description="the newest of them, in order")
    stage: str = Field(default="", description="the job's state while it is under way, else empty")
    generated_tokens: int = Field(default=0, description="as last reported while it is under way")
    outcome: str = Field(default="", description="empty while under way, then done, cancelled or failed:<code>")
    error: str = ""
    took_seconds: float | None = Field(
        default=None, description="from placement to the end; None: was not placed, or is under way"
    )
    output_tokens: int | None = Field(default=None, description="None: not ended by itself")


class Explanations(Model):
    """`job_id` and `newest` as they were asked. `jobs`: newest first, the choices of a completion in their order; only jobs among
    the newest are known, so it may be empty.
    """

    kind: Literal["explanations"] = "explanations"
    job_id: str
    newest: int
    jobs: tuple[Explanation, ...]
