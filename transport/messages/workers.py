"""Workers to the scheduler about themselves: registration, heartbeats, leaving. Knows nothing of jobs but their counts."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .base import ErrorInfo, Model, Role
from .layout import KVLayout

MAX_SCORES = 256  # of one heartbeat
MAX_SCORE_BINS = 64

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class ModelSizes(Model):
    """What a model's times depend on besides its layout. Parameters count matrices alone; `block_params` are of all layers together.

    `active_params` of them compute one token; the difference are experts that the token does not go to.
    """

    heads: int = Field(ge=1)
    hidden: int = Field(ge=1)
    block_params: int = Field(ge=1)
    active_params: int = Field(ge=1)
    embedding_params: int = Field(ge=1)
    head_params: int = Field(ge=0, description="0: the embedding gives the logits too")
    experts: int = Field(default=1, ge=1)
    active_experts: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _parts_fit_the_whole(self) -> Self:
        for part, whole in (("active_params", "block_params"), ("active_experts", "experts")):
            if getattr(self, part) > getattr(self, whole):
                raise ValueError(f"{part}={getattr(self, part)} is more than {whole}={getattr(self, whole)}")
        return self


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
    device: str = Field(
        default="", max_length=200, description="cpu, or the GPU's name as its driver has it; empty: not said"
    )
    sizes: ModelSizes | None = None
    nic_gbps: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="its share of the machine's network; None: not known"
    )


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
