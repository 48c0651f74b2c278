"""UCX: payloads by RDMA, NVLink or shared memory, whichever UCX finds; headers over a TCP connection beside it.

The TCP connection is what the address names. It carries each side's UCX address and tag at the start, then every header, and
payloads too small for a transfer of their own to pay. The receiver knows a payload's size before it allocates, a peer's
death is seen as on any TCP connection, and only the bound interface can be connected to. No encryption;
transport/handshake.py proves the shared secret on both sides.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import struct
from typing import Any

from packhorse.errors import FrameError, LinkClosedError, LinkTimeoutError

from .framing import SEND_TIMEOUT_SECONDS, Payload, pack
from .link import Frame, Link, Listener
from .messages import Model, decode
from .ucx_engine import UcxEngine
from .wire import Door, Wire, bind, dial, parse_host_port

log = logging.getLogger(__name__)

_INLINE_BYTES = 8 * 1024
_MEET_SECONDS = 5.0  # to exchange UCX addresses
_LINGER_SECONDS = 0.5  # payloads under way may still arrive after the peer's end mark
_POLL_SECONDS = 0.05
_TAG = struct.Struct("!Q")


class UcxLink(Link):
    def __init__(self, wire: Wire, engine: UcxEngine, endpoint: Any, send_tag: int, receive_tag: int) -> None:
        self.address = wire.address
        self._wire = wire
        self._engine = engine
        self._endpoint = endpoint
        self._send_tag = send_tag
        self._receive_tag = receive_tag
        self._closed = False

    @classmethod
    async def connect(cls, address: str, rest: str) -> UcxLink:
        """Raises OSError; ConfigError without ucxx; LinkClosedError; ValueError on a malformed address."""
        place = parse_host_port(address, rest)
        engine = UcxEngine.acquire()
        try:
            wire = Wire(await dial(*place), address)
        except BaseException:
            engine.release()
            raise
        return await cls.meet(wire, engine)

    @classmethod
    async def meet(cls, wire: Wire, engine: UcxEngine) -> UcxLink:
        """Exchanges UCX addresses over `wire`. Owns `wire` and a use of `engine`, and gives both back when it fails."""
        try:
            tag = secrets.randbits(64)
            await wire.write_frame(_TAG.pack(tag) + engine.address, b"")
            header, payload_bytes = await wire.read_start()
            if len(header) <= _TAG.size or payload_bytes:
                raise FrameError(f"{wire.address} sent no UCX address: it is not a UCX listener")
            endpoint = engine.connect(bytes(header[_TAG.size :]))
            return cls(wire, engine, endpoint, _TAG.unpack_from(header)[0], tag)
        except BaseException:
            await wire.close()
            engine.release()
            raise

    async def send(self, message: Model, payload: Payload = b"") -> None:
        header, view = pack(message, payload)
        if len(view) <= _INLINE_BYTES:
            await self._wire.write_frame(header, view)
            return
        await self._wire.write_frame(header, b"", len(view))
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                await self._transfer(self._engine.send(self._open(), view, self._send_tag))
        except TimeoutError as error:
            raise LinkTimeoutError(f"{self.address} took nothing for {SEND_TIMEOUT_SECONDS:g} s") from error

    async def receive(self) -> Frame:
        try:
            header, payload_bytes = await self._wire.read_start()
            message = decode(memoryview(header))
            if payload_bytes <= _INLINE_BYTES:
                return Frame(message, memoryview(await self._wire.read(payload_bytes)))
            payload = memoryview(bytearray(payload_bytes))
            await self._transfer(self._engine.receive(self._open(), payload, self._receive_tag))
            return Frame(message, payload)
        except FrameError:
            self._wire.hang_up()
            raise

    async def close(self) -> None:
        """Lets payloads under way arrive: the endpoint goes once the peer has hung up too, or after _LINGER_SECONDS."""
        if self._closed:
            return
        self._closed = True
        self._wire.hang_up(socket.SHUT_WR)
        for _ in range(round(_LINGER_SECONDS / _POLL_SECONDS)):
            if self._wire.peer_hung_up():
                break
            await asyncio.sleep(_POLL_SECONDS)
        self._engine.disconnect(self._endpoint)
        self._endpoint = None
        await self._wire.close()
        self._engine.release()

    def _open(self) -> Any:
        """The endpoint. Raises LinkClosedError once this side has closed."""
        if self._endpoint is None:
            raise LinkClosedError(f"the link to {self.address} is closed")
        return self._endpoint

    async def _transfer(self, done: asyncio.Future[None]) -> None:
        """Waits for a payload. A peer that hangs up has _LINGER_SECONDS left for it. A failure ends the link."""
        left = _LINGER_SECONDS
        try:
            while not done.done() and left > 0:
                await asyncio.wait([done], timeout=_POLL_SECONDS)
                left -= _POLL_SECONDS if self._wire.peer_hung_up() else 0
            if not done.done():
                raise LinkClosedError(f"{self.address} is gone")
            done.result()
        except BaseException:
            self._wire.hang_up()
            raise


class UcxListener(Listener):
    """Peers exchange addresses in tasks of their own, so a silent one holds up nobody."""

    def __init__(self, door: Door, engine: UcxEngine) -> None:
        self.address = door.address
        self._door = door
        self._engine = engine
        self._links: asyncio.Queue[UcxLink | None] = asyncio.Queue()
        self._meeting: dict[asyncio.Task[None], Wire] = {}
        self._accepting = asyncio.create_task(self._accept(), name=f"accept {self.address}")
        self._closed = False

    @classmethod
    async def listen(cls, address: str, rest: str) -> UcxListener:
        """Raises OSError; ConfigError without ucxx; ValueError on a malformed address."""
        place = parse_host_port(address, rest)
        engine = UcxEngine.acquire()
        try:
            return cls(Door(await bind(*place), "ucx"), engine)
        except BaseException:
            engine.release()
            raise

    async def accept(self) -> Link:
        link = await self._links.get()
        if link is None:
            self._links.put_nowait(None)  # for the next caller
            raise LinkClosedError(f"{self.address} is closed")
        return link

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._door.close()
        tasks, wires = [self._accepting, *self._meeting], list(self._meeting.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for wire in wires:  # a task that never ran has not closed its own
            await wire.close()
        while not self._links.empty():
            link = self._links.get_nowait()
            if link is not None:
                await link.close()
        self._links.put_nowait(None)
        self._engine.release()

    async def _accept(self) -> None:
        while True:
            wire = await self._door.accept()
            task = asyncio.create_task(self._meet(wire), name=f"meet {wire.address}")
            self._meeting[task] = wire
            task.add_done_callback(self._meeting.pop)

    async def _meet(self, wire: Wire) -> None:
        engine = UcxEngine.acquire()
        try:
            async with asyncio.timeout(_MEET_SECONDS):
                link = await UcxLink.meet(wire, engine)
        except (LinkClosedError, LinkTimeoutError, FrameError, TimeoutError) as error:
            log.warning("%s gave up on %s: %s", self.address, wire.address, error)
            return
        self._links.put_nowait(link)
