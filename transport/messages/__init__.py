"""Every message that crosses a process boundary, as frozen pydantic models, and their wire encoding (msgpack).

Three planes share the encoding: control (gateway, workers <-> scheduler), tokens (workers -> gateway), and the headers of the
data plane (prefill -> decode page streams). A file holds the messages of one noun. None knows of sockets, tensors or who may send what
when; that is written in docs/design.md and held by scheduler/jobs.py and transport/page_link.py.

Units: `_seconds` wall-clock durations, `_bytes` bytes, `_tokens` tokens, `pages` whole pages of all layers and KV heads.
"""

from .base import ErrorInfo, FinishReason, Model, Role
from .encoding import MAX_CONTROL_BYTES, WIRE_VERSION, Message, decode, encode
from .gateway import (
    Cancel,
    Eviction,
    Explain,
    Explanation,
    Explanations,
    JobEnded,
    JobFailed,
    Placed,
    PredictionErrors,
    Status,
    StatusRequest,
    Submit,
    WorkerStatus,
)
from .jobs import Job, JobStats, Sampling, TokenLogprob, TokenOutput, Tokens, ToolPause
from .layout import KVLayout
from .placing import (
    JobDone,
    PrefillDone,
    Release,
    Released,
    Reserve,
    Reserved,
    StartPrefill,
    WorkerFailed,
)
from .preempting import Paused, Preempt, Preempted, Replay, Resume, Resumed
from .streams import Credit, Hello, Pages, Refused, Residual, StreamAbort, StreamAck, StreamEnd, StreamOpen, Welcome
from .workers import (
    MAX_SCORE_BINS,
    MAX_SCORES,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    LengthScore,
    PrefixChanges,
    Register,
    Registered,
    Rejected,
    WorkerInfo,
    WorkerLoad,
)

__all__ = [
    "MAX_CONTROL_BYTES",
    "MAX_SCORES",
    "MAX_SCORE_BINS",
    "WIRE_VERSION",
    "Cancel",
    "Credit",
    "ErrorInfo",
    "Eviction",
    "Explain",
    "Explanation",
    "Explanations",
    "FinishReason",
    "Goodbye",
    "Heartbeat",
    "HeartbeatAck",
    "Hello",
    "Job",
    "JobDone",
    "JobEnded",
    "JobFailed",
    "JobStats",
    "KVLayout",
    "LengthScore",
    "Message",
    "Model",
    "Pages",
    "Paused",
    "Placed",
    "PredictionErrors",
    "Preempt",
    "Preempted",
    "PrefillDone",
    "PrefixChanges",
    "Refused",
    "Register",
    "Registered",
    "Rejected",
    "Release",
    "Released",
    "Replay",
    "Reserve",
    "Reserved",
    "Residual",
    "Resume",
    "Resumed",
    "Role",
    "Sampling",
    "StartPrefill",
    "Status",
    "StatusRequest",
    "StreamAbort",
    "StreamAck",
    "StreamEnd",
    "StreamOpen",
    "Submit",
    "TokenLogprob",
    "TokenOutput",
    "Tokens",
    "ToolPause",
    "Welcome",
    "WorkerFailed",
    "WorkerInfo",
    "WorkerLoad",
    "WorkerStatus",
    "decode",
    "encode",
]
