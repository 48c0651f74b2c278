"""The scheduler and the workers about one job: reserving, prefilling, ending. scheduler/jobs.py holds their order."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import ErrorInfo, FinishReason, Model
from .jobs import Job, JobStats
from .preempting import Replay


class Reserve(Model):
    """Scheduler -> decode: hold pages and a residual buffer for a job that will arrive by page stream."""

    kind: Literal["reserve"] = "reserve"
    job: Job
    pages: int
    prefill_worker: str
    replay: Replay | None = Field(default=None, description="of a job that goes on after it was dropped")


class Reserved(Model):
    kind: Literal["reserved"] = "reserved"
    job_id: str
    worker_id: str
    held_pages: int = Field(default=0, ge=0, description="the prompt's first pages, which the worker holds for the job")


class StartPrefill(Model):
    """Scheduler -> prefill. With no `data_address` the job cannot outlive token 1 (max_tokens is 1)."""

    kind: Literal["start_prefill"] = "start_prefill"
    job: Job
    decode_worker: str = ""
    data_address: str | None = None
    queue_seconds: float = 0.0
    held_pages: int = Field(default=0, ge=0, description="the prompt's first pages, which are not to be sent")
    first_token: int | None = Field(
        default=None, description="token 1 of a job that was dropped: not to be sampled or sent"
    )


class PrefillDone(Model):
    """Prefill -> scheduler: token 1 is sampled and, unless `finish_reason` is set, everything is shipped and acknowledged."""

    kind: Literal["prefill_done"] = "prefill_done"
    job_id: str
    worker_id: str
    finish_reason: FinishReason | None
    stats: JobStats


class JobDone(Model):
    """Decode -> scheduler: the last token is sampled and the job's pages are free again."""

    kind: Literal["job_done"] = "job_done"
    job_id: str
    worker_id: str
    stats: JobStats


class WorkerFailed(Model):
    """Worker -> scheduler: this job failed here and holds nothing here any more."""

    kind: Literal["worker_failed"] = "worker_failed"
    job_id: str
    worker_id: str
    error: ErrorInfo


class Release(Model):
    """Scheduler -> worker: drop the job in whatever state it is. Answered by Released, also for an unknown job."""

    kind: Literal["release"] = "release"
    job_id: str
    reason: str


class Released(Model):
    kind: Literal["released"] = "released"
    job_id: str
    worker_id: str
