"""The scheduler and a decode worker about a job that stops, for others or for a tool, and goes on. scheduler/preemption.py decides who."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Model
from .jobs import JobStats


class Replay(Model):
    """A job that was dropped: its tokens, which were all sent, and what it cost. Whoever goes on with it computes them again, unsent."""

    tokens: tuple[int, ...] = Field(min_length=1)
    stats: JobStats


class Preempt(Model):
    """Scheduler -> decode: stop this running job and move its pages and residual to host memory, or drop them.

    Jobs that do not run are left alone.
    """

    kind: Literal["preempt"] = "preempt"
    job_id: str
    number: int = Field(description="how often the job was preempted, with this time")
    drop: bool = False


class Preempted(Model):
    """Decode -> scheduler: the job's device pages and its residual buffer are free.

    It is out, and generates nothing until Resume; or it was dropped, and the worker holds nothing of it any more.
    """

    kind: Literal["preempted"] = "preempted"
    job_id: str
    worker_id: str
    number: int = Field(description="of the Preempt that this answers")
    replay: Replay | None = Field(default=None, description="of a job that was dropped")
    moved_bytes: int = 0
    move_seconds: float = Field(default=0.0, description="that the copy took, once it had begun")


class Paused(Model):
    """Decode -> scheduler: the job has come to its declared tool pause. Its pages stay; it generates nothing until Resume."""

    kind: Literal["paused"] = "paused"
    job_id: str
    worker_id: str


class Resume(Model):
    """Scheduler -> decode: let a paused job run on; move a preempted one back before, whose pages fit now."""

    kind: Literal["resume"] = "resume"
    job_id: str


class Resumed(Model):
    """Decode -> scheduler: the job runs again, and its host memory is free."""

    kind: Literal["resumed"] = "resumed"
    job_id: str
    worker_id: str
