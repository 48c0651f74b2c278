"""Headers of the data plane, prefill <-> decode; a frame is one of these and a payload. transport/page_link.py holds their order.

`stream` tells the streams of one job over one link apart: a job may come again while words of its last stream are under way.
"""

from __future__ import annotations

from typing import Literal

from .base import ErrorInfo, Model
from .jobs import JobStats, TokenOutput
from .layout import KVLayout


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
    stream: int = 0
    priority: int = 0


class Pages(Model):
    """Payload: uint8 [num_pages, kv_heads, page_bytes] of one layer, as it lies in the pool. `checksum` is xxh3_64."""

    kind: Literal["pages"] = "pages"
    job_id: str
    stream: int = 0
    layer: int
    first_page: int
    num_pages: int
    checksum: int


class Residual(Model):
    """Payload: [2 (K, V), kv_heads, num_tokens, head_dim] of one layer in the layout's dtype: sinks, then the open block."""

    kind: Literal["residual"] = "residual"
    job_id: str
    stream: int = 0
    layer: int
    num_tokens: int
    checksum: int


class StreamEnd(Model):
    """All pages and residuals of the job were sent. Token 1 goes along; decoding may start."""

    kind: Literal["stream_end"] = "stream_end"
    job_id: str
    stream: int = 0
    prompt_tokens: int
    num_pages: int
    first_token: TokenOutput
    stats: JobStats


class StreamAck(Model):
    """The decode side holds the whole stream: the prefill side's lease ends."""

    kind: Literal["stream_ack"] = "stream_ack"
    job_id: str
    stream: int = 0


class StreamAbort(Model):
    """Either side gives the stream up; the receiver of this drops it without an answer."""

    kind: Literal["stream_abort"] = "stream_abort"
    job_id: str
    stream: int = 0
    error: ErrorInfo


class Credit(Model):
    """The receiver consumed payload: the sender may have this many more bytes under way."""

    kind: Literal["credit"] = "credit"
    credit_bytes: int
