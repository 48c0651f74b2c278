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


class Status(Model):
    """What the scheduler knows; the gateway asks for it every second or so, for /health and /metrics."""

    kind: Literal["status"] = "status"
    epoch: str
    policy: str
    workers: tuple[WorkerStatus, ...]
    jobs_by_state: dict[str, int]
    jobs_total: dict[str, int] = Field(description="since start, by outcome: done, failed:<code>, cancelled")


class Explain(Model):
    """Anyone -> scheduler: how was this job scheduled? Answered by Explanation, as long as the job is among the newest."""

    kind: Literal["explain"] = "explain"
    job_id: str


class Explanation(Model):
    """`known` is false, and everything else empty, for a job that is not among the newest."""

    kind: Literal["explanation"] = "explanation"
    job_id: str
    known: bool
    policy: str = ""
    placement: str = ""
    prompt_tokens: int = 0
    predicted_tokens: tuple[float, ...] = Field(default=(), description="output lengths at the levels")
    levels: tuple[float, ...] = ()
    predicted_by: str = Field(default="", description="what the prediction rests on")
    prefill_worker: str = ""
    decode_worker: str = ""
    queue_seconds: float | None = Field(default=None, description="None: not placed yet")
    expected_seconds: float = Field(
        default=0.0, description="from placement to the last token, as predicted; 0: was not"
    )
    why: str = ""
    output_tokens: int | None = Field(default=None, description="None: not ended by itself yet")
