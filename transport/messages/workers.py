"""Workers to the scheduler about themselves: registration, heartbeats, leaving. Knows nothing of jobs but their counts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import ErrorInfo, Model, Role
from .layout import KVLayout

MAX_SCORES = 256  # of one heartbeat
MAX_SCORE_BINS = 64

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class WorkerInfo(Model):
    """What a worker says of itself at registration."""

    worker_id: str
    role: Role
    layout: KVLayout
    max_context_tokens: int
    max_jobs: int = Field(description="jobs that it holds at once")
    data_address: str | None = Field(
        default=None, description="decode: where page streams connect, with the link's scheme"
    )
    capacity_pages: int = Field(default=0, description="decode: pages in the pool")
    host_pages: int = Field(default=0, description="decode: pages of preempted jobs that host memory may hold")
    link: str = "zmq"
    backend: str = Field(default="reference", description="kernel back end in use")


class LengthScore(Model):
    """What a job's hidden state says, at its token `generated`, of how many are still to come.

    A probability for each of equal bins of 0 to `span_tokens`; the last one also stands for all beyond.
    """

    generated: int = Field(ge=1)
    span_tokens: int = Field(ge=1)
    probabilities: tuple[Probability, ...] = Field(min_length=2, max_length=MAX_SCORE_BINS)


class WorkerLoad(Model):
    """A worker's own counts, at a heartbeat."""

    jobs: int = 0
    pages_used: int = Field(default=0, description="decode: pages reserved or filled")
    pages_cached: int = Field(
        default=0, description="decode: kept from ended jobs for their prefixes; free as far as reservations go"
    )
    host_pages_used: int = Field(default=0, description="decode: reserved by jobs whose pages are in host memory")
    residuals_used: int = Field(default=0, description="decode: residual buffers in use")
    leases: int = Field(default=0, description="prefill: streams not yet acknowledged")
    lease_bytes: int = 0
    links: int = Field(default=0, description="open data links")
    tokens_per_second: float = 0.0
    bytes_shipped: int = Field(default=0, description="prefill: page and residual bytes since start")
    link_bytes_per_second: float = Field(default=0.0, description="measured, newest stream; 0 before the first")
    step_seconds: float = Field(
        default=0.0, description="decode: mean of the steps since the last heartbeat; 0 without any"
    )
    step_context_tokens: float = Field(
        default=0.0, description="decode: mean of the tokens that the batch held in them"
    )
    step_jobs: float = Field(default=0.0, description="decode: mean of the jobs in them")
    generated: dict[str, int] = Field(default_factory=dict, description="decode: tokens of each running job so far")
    scores: dict[str, LengthScore] = Field(
        default_factory=dict, max_length=MAX_SCORES, description="decode with a length probe: newest of each job, once"
    )


class Register(Model):
    kind: Literal["register"] = "register"
    worker: WorkerInfo


class Registered(Model):
    """The scheduler's answer. A worker that sees a new `epoch` drops what it holds: the scheduler has forgotten it."""

    kind: Literal["registered"] = "registered"
    epoch: str
    heartbeat_seconds: float
    timeout_seconds: float


class Rejected(Model):
    """Registration refused (duplicate id, layout differs from the other workers')."""

    kind: Literal["rejected"] = "rejected"
    error: ErrorInfo


class Heartbeat(Model):
    kind: Literal["heartbeat"] = "heartbeat"
    worker_id: str
    load: WorkerLoad


class HeartbeatAck(Model):
    """`known` is false when the worker must register again."""

    kind: Literal["heartbeat_ack"] = "heartbeat_ack"
    epoch: str
    known: bool


class Goodbye(Model):
    """A worker is shutting down: place nothing more on it, fail what it holds."""

    kind: Literal["goodbye"] = "goodbye"
    worker_id: str


class PrefixChanges(Model):
    """Decode -> scheduler: which prompt pages the worker has come to hold, and given up, since it last said so or registered.

    Digests (transport/page_digest.py) of DIGEST_BYTES each, joined.
    """

    kind: Literal["prefix_changes"] = "prefix_changes"
    worker_id: str
    added: bytes = b""
    gone: bytes = b""
