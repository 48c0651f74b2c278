"""The wire encoding of messages: msgpack of [WIRE_VERSION, fields], told apart by `kind`. Knows nothing of sockets."""

from __future__ import annotations

from typing import Annotated, Any

import msgpack
from pydantic import Field, TypeAdapter, ValidationError

from packhorse.errors import FrameError

from .base import Model
from .gateway import Cancel, Explain, Explanations, JobEnded, JobFailed, Placed, Status, StatusRequest, Submit
from .jobs import Tokens
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
from .preempting import Paused, Preempt, Preempted, Resume, Resumed
from .streams import Credit, Hello, Pages, Refused, Residual, StreamAbort, StreamAck, StreamEnd, StreamOpen, Welcome
from .workers import Goodbye, Heartbeat, HeartbeatAck, PrefixChanges, Register, Registered, Rejected

WIRE_VERSION = 2  # one more for every release whose messages are not those of the one before
MAX_CONTROL_BYTES = 16 * 1024 * 1024

Message = Annotated[
    Register | Registered | Rejected | Heartbeat | HeartbeatAck | Goodbye | PrefixChanges
    | Reserve | Reserved | Preempt | Preempted | Paused | Resume | Resumed | StartPrefill | PrefillDone | JobDone
    | WorkerFailed | Release | Released
    | Submit | Cancel | Placed | JobFailed | JobEnded | StatusRequest | Status | Explain | Explanations
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
