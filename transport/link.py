"""A link: one ordered, reliable, two-way connection that carries frames (a message and a payload of raw bytes).

The seam between page streams and the network. It knows nothing of jobs, pages or credits. One file per transport
implements it: inproc_link.py, tcp_link.py, zmq_link.py, ucx_link.py; `connect` and `listen` choose by the address's scheme.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from transport.messages import Model

MAX_PAYLOAD_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Frame:
    """`message` is any of transport.messages; `payload` is bytes-like and may be empty. What was received is writable memory."""

    message: Any
    payload: bytes | bytearray | memoryview = b""


class Link(ABC):
    """One connection. `send` and `receive` may run at the same time; two sends, or two receives, may not.

    Cancelling either may end the link, since it may have torn a frame. `send` may wait until the peer receives.
    """

    address: str

    @abstractmethod
    async def send(self, message: Model, payload: bytes | bytearray | memoryview = b"") -> None:
        """Returns when the payload's memory may be reused. Raises LinkClosedError, LinkTimeoutError, FrameError (too large)."""

    @abstractmethod
    async def receive(self) -> Frame:
        """The next frame; waits without limit. Raises LinkClosedError when the peer or this side closed, FrameError if corrupt."""

    @abstractmethod
    async def close(self) -> None:
        """Idempotent; a pending receive, here or at the peer, raises LinkClosedError."""


class Listener(ABC):
    """Accepts links. `address` is what a peer connects to (the real port where 0 was asked for)."""

    address: str

    @abstractmethod
    async def accept(self) -> Link:
        """The next link; waits without limit. Raises LinkClosedError once closed."""

    @abstractmethod
    async def close(self) -> None:
        """Idempotent; stops accepting. Accepted links stay open and are their owner's to close."""
