"""Links inside one process and event loop, for tests: a registry of named listeners and bounded queues.

Messages are encoded and payloads copied, so that what holds on this link holds on the others.
"""

from __future__ import annotations

import asyncio
from collections import deque

from packhorse.errors import LinkClosedError, LinkTimeoutError

from .framing import SEND_TIMEOUT_SECONDS, Payload, pack
from .link import Frame, Link, Listener
from .messages import Model, decode

_MAX_QUEUED_FRAMES = 64
_listeners: dict[str, InprocListener] = {}


class _Pipe:
    """One direction of a link."""

    def __init__(self) -> None:
        self._frames: deque[tuple[bytes, bytearray]] = deque()
        self._changed = asyncio.Condition()
        self._closed = False

    async def put(self, frame: tuple[bytes, bytearray]) -> bool:
        """False when the pipe is closed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or len(self._frames) < _MAX_QUEUED_FRAMES)
            if not self._closed:
                self._frames.append(frame)
                self._changed.notify_all()
            return not self._closed

    async def get(self) -> tuple[bytes, bytearray] | None:
        """None when the pipe is closed and empty."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or self._frames)
            frame = self._frames.popleft() if self._frames else None
            self._changed.notify_all()
            return frame

    async def close(self, *, discard: bool) -> None:
        async with self._changed:
            self._closed = True
            if discard:
                self._frames.clear()
            self._changed.notify_all()


class InprocLink(Link):
    def __init__(self, address: str, incoming: _Pipe, outgoing: _Pipe) -> None:
        self.address = address
        self._incoming = incoming
        self._outgoing = outgoing

    @classmethod
    async def connect(cls, address: str, rest: str) -> InprocLink:
        """Raises ConnectionRefusedError when nobody listens; ValueError on an empty name."""
        listener = _listeners.get(_name(address, rest))
        if listener is None:
            raise ConnectionRefusedError("nobody listens")
        there, here = _Pipe(), _Pipe()
        listener.links.put_nowait(cls(address, there, here))
        return cls(address, here, there)

    async def send(self, message: Model, payload: Payload = b"") -> None:
        header, view = pack(message, payload)
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                sent = await self._outgoing.put((header, bytearray(view)))
        except TimeoutError as error:
            raise LinkTimeoutError(f"{self.address} took nothing for {SEND_TIMEOUT_SECONDS:g} s") from error
        if not sent:
            raise LinkClosedError(f"the link to {self.address} is closed")

    async def receive(self) -> Frame:
        frame = await self._incoming.get()
        if frame is None:
            raise LinkClosedError(f"the link to {self.address} is closed")
        header, payload = frame
        return Frame(decode(header), memoryview(payload))

    async def close(self) -> None:
        await self._incoming.close(discard=True)
        await self._outgoing.close(discard=False)


class InprocListener(Listener):
    def __init__(self, address: str, name: str) -> None:
        self.address = address
        self.links: asyncio.Queue[InprocLink | None] = asyncio.Queue()
        self._name = name

    @classmethod
    async def listen(cls, address: str, rest: str) -> InprocListener:
        """Raises OSError when the name is taken; ValueError on an empty name."""
        name = _name(address, rest)
        if name in _listeners:
            raise OSError("the name is taken")
        listener = _listeners[name] = cls(address, name)
        return listener

    async def accept(self) -> Link:
        link = await self.links.get()
        if link is None:
            self.links.put_nowait(None)  # for the next caller
            raise LinkClosedError(f"{self.address} is closed")
        return link

    async def close(self) -> None:
        if _listeners.get(self._name) is not self:
            return
        del _listeners[self._name]
        while not self.links.empty():
            link = self.links.get_nowait()
            if link is not None:
                await link.close()
        self.links.put_nowait(None)


def _name(address: str, rest: str) -> str:
    if not rest:
        raise ValueError(f"{address!r} has no name")
    return rest
