"""How a frame lies on a byte stream, and the size limits that every link checks before it allocates or sends.

    magic "PHL1" | header_bytes uint32 | payload_bytes uint64 | header (transport.messages encoding) | payload

Network byte order. This file knows nothing of sockets.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

from packhorse.errors import FrameError

from .link import MAX_PAYLOAD_BYTES
from .messages import MAX_CONTROL_BYTES, Model, encode

Payload: TypeAlias = bytes | bytearray | memoryview

SEND_TIMEOUT_SECONDS = 120.0  # a peer that lives but takes nothing for this long
_PREFIX = struct.Struct("!4sIQ")
_MAGIC = b"PHL1"
PREFIX_BYTES = _PREFIX.size


def flat(payload: Payload) -> memoryview:
    """`payload` as a C-contiguous view of bytes. Raises FrameError where that would need a copy."""
    view = memoryview(payload)
    if not view.c_contiguous:
        raise FrameError("a payload must be contiguous in memory")
    return view.cast("B") if view.nbytes else memoryview(b"")


def check_sizes(header_bytes: int, payload_bytes: int) -> None:
    """Raises FrameError above the limits."""
    if header_bytes > MAX_CONTROL_BYTES:
        raise FrameError(f"a frame's header has {header_bytes} bytes; the limit is {MAX_CONTROL_BYTES}")
    if payload_bytes > MAX_PAYLOAD_BYTES:
        raise FrameError(f"a frame's payload has {payload_bytes} bytes; the limit is {MAX_PAYLOAD_BYTES}")


def max_part_bytes() -> int:
    """The most bytes that a header or a payload has."""
    return max(MAX_CONTROL_BYTES, MAX_PAYLOAD_BYTES)


def pack(message: Model, payload: Payload) -> tuple[bytes, memoryview]:
    """The encoded header and the payload's bytes, both within the limits. Raises FrameError."""
    view = flat(payload)
    header = encode(message)
    check_sizes(len(header), len(view))
    return header, view


def prefix(header_bytes: int, payload_bytes: int) -> bytes:
    return _PREFIX.pack(_MAGIC, header_bytes, payload_bytes)


def parse_prefix(data: bytes | bytearray) -> tuple[int, int]:
    """(header_bytes, payload_bytes), both within the limits. Raises FrameError for a foreign magic or an oversize."""
    magic, header_bytes, payload_bytes = _PREFIX.unpack(data)
    if magic != _MAGIC:
        raise FrameError(
            f"a frame starts with {magic!r} and not with {_MAGIC!r}: the peer does not speak this protocol"
        )
    check_sizes(header_bytes, payload_bytes)
    return header_bytes, payload_bytes
