"""Every message that crosses a process boundary, as frozen pydantic models, and their wire encoding (msgpack).

Three planes share the encoding: control (gateway, workers <-> scheduler), tokens (workers -> gateway), and the headers of the
data plane (prefill -> decode page streams). This file knows nothing of sockets, tensors or who may send what when; that is
written in docs/design.md and held by scheduler/jobs.py and transport/streams.py.

Units: `_seconds` wall-clock durations, `_bytes` bytes, `_tokens` tokens, `pages` whole pages of all layers and KV heads.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgpack
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from packhorse.errors import FrameError, PackhorseError, from_code

WIRE_VERSION = 1
MAX_CONTROL_BYTES = 16 * 1024 * 1024

Role = Literal["prefill", "decode"]
FinishReason = Literal["stop", "length"]


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# ---- values inside messages


class ErrorInfo(Model):
    """A PackhorseError on the wire."""

    code: str
    message: str
    param: str | None = None

    @classmethod
    def of(cls, error: PackhorseError) -> ErrorInfo:
        return cls(code=error.code, message=error.message, param=error.param)

    def error(self) -> PackhorseError:
        return from_code(self.code, self.message, self.param)


class Sampling(Model):
    """How to choose the tokens of one job. `logprobs` is the number of alternatives to report (0: the chosen token alone)."""

    max_tokens: int = Field(ge=1)
    temperature: float = Field(default=1.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0, description="0: no limit")
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    seed: int = Field(ge=0, lt=2**63, description="the gateway draws one where the request has none")
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = Field(default=1.0, gt=0.0)
    logit_bias: dict[int, float] = Field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = Field(default=None, ge=0)


class Job(Model):
    """One sequence to prefill and decode; a request with n > 1 is n jobs. `reply_to` is the gateway's token address."""

    job_id: str
    prompt: tuple[int, ...] = Field(min_length=1)
    sampling: Sampling
    reply_to: str
    priority: int = 0


class KVLayout(Model):
    """What both ends of a page stream must agree on, field by field (see transport/handshake.py)."""

    model: str
    revision: str = Field(description="hash of configuration and weights")
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str = Field(description="of raw pages and of the residual, as torch names it: bfloat16")
    kv_format: str = Field(description="raw, or k<bits>v<bits>")
    page_tokens: int
    sink_tokens: int
    page_bytes: int = Field(description="of one page of one KV head of one layer")
    layout_version: int


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


class WorkerLoad(Model):
    """A worker's own counts, at a heartbeat."""

    jobs: int = 0
    pages_used: int = Field(default=0, description="decode: pages reserved or filled")
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


class JobStats(Model):
    """What one job cost, gathered along its way."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prefill_worker: str = ""
    decode_worker: str = Field(default="", description="empty: token 1 ended the job")
    bytes_shipped: int = Field(default=0, description="payload bytes of pages and residual")
    raw_bytes: int = Field(default=0, description="the same tokens as raw pages and residual in 16-bit values")
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    ship_seconds: float = Field(default=0.0, description="end of prefill to the decode side's acknowledgement")


class TokenLogprob(Model):
    token_id: int
    logprob: float


class TokenOutput(Model):
    """One generated token. `index` counts from 0 (token 1, by the prefill worker); receivers put tokens in its order."""

    job_id: str
    index: int
    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_string: str | None = Field(default=None, description="the stop string that ended the job, if one did")
    stats: JobStats | None = Field(default=None, description="with the last token, and with token 1")


# ---- control plane: workers <-> scheduler


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


class Reserve(Model):
    """Scheduler -> decode: hold pages and a residual buffer for a job that will arrive by page stream."""

    kind: Literal["reserve"] = "reserve"
    job: Job
    pages: int
    prefill_worker: str


class Reserved(Model):
    kind: Literal["reserved"] = "reserved"
    job_id: str
    worker_id: str


class Preempt(Model):
    """Scheduler -> decode: stop this running job and move its pages and residual to host memory. Jobs that do not run are left alone."""

    kind: Literal["preempt"] = "preempt"
    job_id: str
    number: int = Field(description="how often the job was preempted, with this time")


class Preempted(Model):
    """Decode -> scheduler: the job's device pages and its residual buffer are free; it generates nothing until Resume."""

    kind: Literal["preempted"] = "preempted"
    job_id: str
    worker_id: str
    number: int = Field(description="of the Preempt that this answers")


class Resume(Model):
    """Scheduler -> decode: move a preempted job back, whose pages fit now, and let it run on."""

    kind: Literal["resume"] = "resume"
    job_id: str


class StartPrefill(Model):
    """Scheduler -> prefill. With no `data_address` the job cannot outlive token 1 (max_tokens is 1)."""

    kind: Literal["start_prefill"] = "start_prefill"
    job: Job
    decode_worker: str = ""
    data_address: str | None = None
    queue_seconds: float = 0.0


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


# ---- control plane: gateway <-> scheduler


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


# ---- token plane: workers -> gateway


class Tokens(Model):
    """All tokens of one step for one gateway."""

    kind: Literal["tokens"] = "tokens"
    worker_id: str
    outputs: tuple[TokenOutput, ...]


# ---- data plane headers: prefill <-> decode; a frame is one of these and a payload of raw bytes


class Hello(Model):
    """First frame of a link, from the connecting side. `proof` is an HMAC when a secret is set (see transport/handshake.py)."""

    kind: Literal["hello"] = "hello"
    worker_id: str
    layout: KVLayout
    layout_hash: str
    nonce: bytes = b""
    proof: bytes = b""


class Welcome(Model):
    """The listening side accepts and grants the first credits."""

    kind: Literal["welcome"] = "welcome"
    worker_id: str
    layout_hash: str
    nonce: bytes = b""
    proof: bytes = b""
    credit_bytes: int


class Refused(Model):
    """Either side refuses the link at its handshake, and closes it."""

    kind: Literal["refused"] = "refused"
    error: ErrorInfo


class StreamOpen(Model):
    """Announces a job's page stream. The receiver must hold a reservation for the job."""

    kind: Literal["stream_open"] = "stream_open"
    job_id: str
    priority: int = 0


class Pages(Model):
    """Payload: uint8 [num_pages, kv_heads, page_bytes] of one layer, as it lies in the pool. `checksum` is xxh3_64."""

    kind: Literal["pages"] = "pages"
    job_id: str
    layer: int
    first_page: int
    num_pages: int
    checksum: int


class Residual(Model):
    """Payload: [2 (K, V), kv_heads, num_tokens, head_dim] of one layer in the layout's dtype: sinks, then the open block."""

    kind: Literal["residual"] = "residual"
    job_id: str
    layer: int
    num_tokens: int
    checksum: int


class StreamEnd(Model):
    """All pages and residuals of the job were sent. Token 1 goes along; decoding may start."""

    kind: Literal["stream_end"] = "stream_end"
    job_id: str
    prompt_tokens: int
    num_pages: int
    first_token: TokenOutput
    stats: JobStats


class StreamAck(Model):
    """The decode side holds the whole stream: the prefill side's lease ends."""

    kind: Literal["stream_ack"] = "stream_ack"
    job_id: str


class StreamAbort(Model):
    """Either side gives the stream up; the receiver of this drops it without an answer."""

    kind: Literal["stream_abort"] = "stream_abort"
    job_id: str
    error: ErrorInfo


class Credit(Model):
    """The receiver consumed payload: the sender may have this many more bytes under way."""

    kind: Literal["credit"] = "credit"
    credit_bytes: int


Message = Annotated[
    Register | Registered | Rejected | Heartbeat | HeartbeatAck | Goodbye
    | Reserve | Reserved | Preempt | Preempted | Resume | StartPrefill | PrefillDone | JobDone | WorkerFailed | Release | Released
    | Submit | Cancel | Placed | JobFailed | JobEnded | StatusRequest | Status | Explain | Explanation
    | Tokens
    | Hello | Welcome | Refused | StreamOpen | Pages | Residual | StreamEnd | StreamAck | StreamAbort | Credit,
    Field(discriminator="kind"),
]  # fmt: skip

_ADAPTER: TypeAdapter[Any] = TypeAdapter(Message)


def encode(message: Model) -> bytes:
    """msgpack of [WIRE_VERSION, fields]. Raises FrameError above MAX_CONTROL_BYTES."""
    data: bytes = msgpack.packb([WIRE_VERSION, message.model_dump(mode="python")], use_bin_type=True)
    if len(data) > MAX_CONTROL_BYTES:
        raise FrameError(f"message {type(message).__name__} has {len(data)} bytes; the limit is {MAX_CONTROL_BYTES}")
    return data


def decode(data: bytes | memoryview) -> Any:
    """The message in `data`. Raises FrameError on oversized, foreign-version or malformed input, never anything else."""
    if len(data) > MAX_CONTROL_BYTES:
        raise FrameError(f"a message has {len(data)} bytes; the limit is {MAX_CONTROL_BYTES}")
    try:
        version, fields = msgpack.unpackb(data, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise FrameError(f"not a message: {error}") from error
    if version != WIRE_VERSION:
        raise FrameError(f"wire version {version!r} differs from ours, {WIRE_VERSION}")
    try:
        return _ADAPTER.validate_python(fields)
    except ValidationError as error:
        raise FrameError(f"malformed message: {error.errors(include_url=False, include_input=False)}") from error
