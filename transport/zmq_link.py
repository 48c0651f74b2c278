"""ZeroMQ: the default data link. A DEALER connects, a ROUTER listens; CURVE guards it when there is a secret.

    open     connecting side: a new link            welcome  listening side: the link exists
    frame    header, payload                        close    this side has closed the link
    probe    listening side, each second: nothing, but it fails when the peer is gone

How a lost peer is noticed: ZeroMQ's own heartbeats end a connection that is silent for PEER_TIMEOUT_SECONDS, and a killed
process ends it at once. The connecting side sees that in its socket monitor. A ROUTER has no event that names the peer, but
it forgets the peer, so that the next probe to it fails as unroutable.

A link that holds _MAX_QUEUED_FRAMES unread frames stops its socket from being read, so the senders wait: on a ROUTER the
senders of all its links. Reused after a reconnect, a link would have lost frames; so a broken connection ends it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import deque
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from packhorse.errors import ConfigError, FrameError, HandshakeError, LinkClosedError, LinkTimeoutError, TransportError

from .framing import SEND_TIMEOUT_SECONDS, Payload, check_sizes, max_part_bytes, pack
from .link import Frame, Link, Listener
from .messages import Model, decode
from .security import curve_client
from .sockets import HANDSHAKE_FAILED, MAX_HANDSHAKE_FAILURES, Plug, handshake_failures
from .wire import parse_host_port

log = logging.getLogger(__name__)

PROBE_SECONDS = 1.0
PEER_TIMEOUT_SECONDS = 5.0
_HIGH_WATER_FRAMES = 64
_MAX_QUEUED_FRAMES = 64
_MAX_UNACCEPTED = 128
_RETRY_SECONDS = 0.001
_MAX_RETRY_SECONDS = 0.02
_OPEN, _WELCOME, _FRAME, _CLOSE, _PROBE = b"O", b"W", b"F", b"C", b"P"
_DRAIN_SECONDS = 0.1
_CURVE_BYTES = 1024  # room for the box around a part
_WATCHED = HANDSHAKE_FAILED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


class _Hub:
    """One socket and the links that run over it; closes itself after the last of them and, on a ROUTER, the listener."""

    def __init__(self, kind: int, secret: bytes | None) -> None:
        self.plug = Plug(kind, secret, high_water=_HIGH_WATER_FRAMES)
        self.links: dict[bytes, ZmqLink] = {}  # by routing id; a DEALER's only link under b""
        self.accepted: asyncio.Queue[ZmqLink | None] | None = None  # None on a DEALER, and once the listener is closed
        self._router = kind == zmq.ROUTER
        self._tasks: list[asyncio.Task[None]] = []
        self._monitor: zmq.asyncio.Socket | None = None
        socket = self.plug.socket
        socket.setsockopt(zmq.MAXMSGSIZE, max_part_bytes() + _CURVE_BYTES)
        socket.setsockopt(zmq.HEARTBEAT_IVL, round(PROBE_SECONDS * 1000))
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(PEER_TIMEOUT_SECONDS * 1000))
        if self._router:
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)

    def start(self) -> None:
        self._spawn(self._pump())
        if self._router:
            self._spawn(self._probe())

    def connect(self, address: str, secret: bytes | None) -> None:
        """Connects in the background; what happens to the connection is told to the link. Raises ConfigError."""
        socket = self.plug.socket
        try:
            curve_client(socket, secret)
            socket.ipv6 = "[" in address
            self._monitor = socket.get_monitor_socket(_WATCHED)
            socket.connect(address)
        except zmq.ZMQError as error:
            raise ConfigError(f"cannot connect to {address!r}: {error.strerror}") from error
        self._spawn(self._watch(self._monitor))
        self.start()

    def send_now(self, peer: bytes, *parts: Payload) -> int:
        """0, EAGAIN (the peer's queue is full) or EHOSTUNREACH (the peer is gone)."""
        if self.plug.closed:
            return errno.EHOSTUNREACH
        routed = [peer, *parts] if self._router else list(parts)
        sent: asyncio.Future[Any] = asyncio.ensure_future(self.plug.socket.send_multipart(routed, flags=zmq.DONTWAIT))
        error = sent.exception()  # never pending, as it does not wait
        if error is None:
            return 0
        if isinstance(error, zmq.ZMQError) and error.errno in (errno.EAGAIN, errno.EHOSTUNREACH):
            return int(error.errno)
        raise error

    async def release(self) -> None:
        """Closes the socket when nobody needs it any more."""
        if self.links or self.accepted is not None or self.plug.closed:
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._monitor is not None:
            self.plug.socket.disable_monitor()
            self._monitor.close(linger=0)
        await self.plug.close()

    def _spawn(self, work: Any) -> None:
        self._tasks.append(asyncio.create_task(work, name=f"zmq link {len(self._tasks)}"))

    async def _pump(self) -> None:
        try:
            await self._read()
        except Exception as error:
            log.exception("the socket of %s cannot be read any more", [link.address for link in self.links.values()])
            for link in list(self.links.values()):
                link.lose(LinkClosedError(f"{link.address}: {error}"))

    async def _read(self) -> None:
        while True:
            parts = await self.plug.socket.recv_multipart(copy=False)
            peer = parts.pop(0).bytes if self._router else b""
            first = parts.pop(0)  # ZeroMQ delivers no message of zero parts
            kind = first.bytes
            link = self.links.get(peer)
            if link is not None:
                link.handle(kind, parts)
                await link.has_room()
            elif kind == _OPEN and self.accepted is not None and self.accepted.qsize() < _MAX_UNACCEPTED:
                link = self.links[peer] = ZmqLink(self, peer, f"zmq://{first['Peer-Address']}#{peer.hex()}")
                link.welcomed.set()
                self.accepted.put_nowait(link)
                self.send_now(peer, _WELCOME)
            elif kind != _CLOSE:
                self.send_now(peer, _CLOSE)

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            for link in list(self.links.values()):
                if self.send_now(link.peer, _PROBE) == errno.EHOSTUNREACH:
                    link.lose(LinkClosedError(f"{link.address} is gone"))

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        """Tells a DEALER's link that its connection broke, or cannot be made for want of the right secret."""
        link, connected, failures = self.links[b""], False, 0
        while True:
            event = parse_monitor_message(await monitor.recv_multipart())["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                connected = True
            elif event == zmq.EVENT_DISCONNECTED and connected:
                await asyncio.sleep(_DRAIN_SECONDS)  # what came before it is still to be read
                link.lose(LinkClosedError(f"{link.address} is gone"))
            elif event & HANDSHAKE_FAILED:
                failures += handshake_failures(event)
                if failures > MAX_HANDSHAKE_FAILURES:
                    link.lose(HandshakeError(f"{link.address} does not share our secret, or does not speak ZeroMQ"))


class ZmqLink(Link):
    def __init__(self, hub: _Hub, peer: bytes, address: str) -> None:
        self.address = address
        self.peer = peer
        self.welcomed = asyncio.Event()  # set too when the link is lost
        self.error: TransportError | None = None
        self._hub = hub
        self._inbox: deque[list[zmq.Frame]] = deque()
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._closed = False

    @classmethod
    async def connect(cls, address: str, rest: str, secret: bytes | None) -> ZmqLink:
        """Waits for the listener's answer; the caller sets the limit. Raises ConfigError, HandshakeError, LinkClosedError."""
        parse_host_port(address, rest)
        hub = _Hub(zmq.DEALER, secret)
        link = hub.links[b""] = cls(hub, b"", address)
        try:
            hub.connect(f"tcp://{rest}", secret)
            hub.send_now(b"", _OPEN)  # leaves when there is a connection
            await link.welcomed.wait()
            if link.error is not None and not isinstance(link.error, HandshakeError):
                raise LinkClosedError(f"{address} turned the link away: {link.error}") from link.error
            if link.error is not None:
                raise link.error
        except BaseException:
            await link.close()
            raise
        return link

    async def send(self, message: Model, payload: Payload = b"") -> None:
        header, view = pack(message, payload)
        delay, deadline = _RETRY_SECONDS, asyncio.get_running_loop().time() + SEND_TIMEOUT_SECONDS
        while True:
            self._check_open()
            failure = self._hub.send_now(self.peer, _FRAME, header, view)
            if not failure:
                return
            if failure == errno.EHOSTUNREACH:
                self.lose(LinkClosedError(f"{self.address} is gone"))
            elif asyncio.get_running_loop().time() > deadline:
                raise LinkTimeoutError(f"{self.address} took nothing for {SEND_TIMEOUT_SECONDS:g} s")
            else:
                await asyncio.sleep(delay)
                delay = min(2 * delay, _MAX_RETRY_SECONDS)

    async def receive(self) -> Frame:
        while not self._inbox:
            self._check_open()
            self._filled.clear()
            await self._filled.wait()
        parts = self._inbox.popleft()
        self._drained.set()
        try:
            if len(parts) != 2:
                raise FrameError(f"a frame has {len(parts)} parts and not 2: the peer does not speak this protocol")
            check_sizes(len(parts[0]), len(parts[1]))
            return Frame(decode(parts[0].buffer), parts[1].buffer)
        except FrameError as error:
            self.lose(error)
            raise

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self.error is None:
            self._hub.send_now(self.peer, _CLOSE)
            self.lose(LinkClosedError(f"the link to {self.address} is closed"))
        self._inbox.clear()
        self._drained.set()
        if self._hub.links.get(self.peer) is self:
            del self._hub.links[self.peer]
        await self._hub.release()

    def handle(self, kind: bytes, parts: list[zmq.Frame]) -> None:
        """A message of the peer's, from the hub."""
        if kind == _FRAME and self.error is None:
            self._inbox.append(parts)
            self._filled.set()
        elif kind == _CLOSE:
            self.lose(LinkClosedError(f"{self.address} closed the link"))
        elif kind == _WELCOME:
            self.welcomed.set()

    def lose(self, error: TransportError) -> None:
        """Ends the link; frames that arrived before can still be received."""
        if self.error is None:
            self.error = error
            for event in (self._filled, self.welcomed, self._drained):
                event.set()

    async def has_room(self) -> None:
        while len(self._inbox) >= _MAX_QUEUED_FRAMES and not self._closed:
            self._drained.clear()
            await self._drained.wait()

    def _check_open(self) -> None:
        if self.error is not None:
            raise LinkClosedError(str(self.error)) from self.error


class ZmqListener(Listener):
    """Its port stays taken until its last link is closed, since they share the socket; new links are turned away at once."""

    def __init__(self, hub: _Hub, address: str) -> None:
        self.address = address
        self._hub = hub
        self._accepted: asyncio.Queue[ZmqLink | None] = asyncio.Queue()
        hub.accepted = self._accepted

    @classmethod
    async def listen(cls, address: str, rest: str, secret: bytes | None) -> ZmqListener:
        """Raises ConfigError (taken, malformed, public without a secret); ValueError on a malformed address."""
        parse_host_port(address, rest)
        hub = _Hub(zmq.ROUTER, secret)
        bound = await hub.plug.bind(f"tcp://{rest}")
        listener = cls(hub, bound.replace("tcp://", "zmq://", 1))
        hub.start()
        return listener

    async def accept(self) -> Link:
        link = await self._accepted.get()
        if link is None:
            self._accepted.put_nowait(None)  # for the next caller
            raise LinkClosedError(f"{self.address} is closed")
        return link

    async def close(self) -> None:
        if self._hub.accepted is None:
            return
        self._hub.accepted = None
        while not self._accepted.empty():
            link = self._accepted.get_nowait()
            if link is not None:
                await link.close()
        self._accepted.put_nowait(None)
        await self._hub.release()
