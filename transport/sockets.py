"""How Packhorse makes ZeroMQ sockets: every one is bounded, sends never wait unseen, a broken connection is noticed.

`Plug` is one socket with a context of its own, so that closing it leaves nothing behind. It knows nothing of what is sent.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Sequence

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from packhorse.errors import ConfigError, LinkClosedError
from transport.messages import MAX_CONTROL_BYTES
from transport.security import Authenticator, curve_client, curve_server, require_secret

log = logging.getLogger(__name__)

HIGH_WATER_MESSAGES = 10_000
LINGER_SECONDS = 0.5
PING_SECONDS = 2.0
PEER_TIMEOUT_SECONDS = 10.0
MAX_HANDSHAKE_FAILURES = 1  # a listener that dies amid its handshake fails once; a wrong secret fails at every attempt
HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_FRAME_OVERHEAD_BYTES = 1024  # CURVE's box around a message of the largest size


def handshake_failures(event: int) -> int:
    """How much a monitor event speaks for a peer that does not share our secret: against MAX_HANDSHAKE_FAILURES."""
    if event & (zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL):
        return 2
    return 1 if event & zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL else 0


class Plug:
    """One socket of `kind` and its context. Make it, set options on `.socket`, then `bind` or `connect`; `close` ends both.

    All calls come from one running event loop's thread.
    """

    def __init__(self, kind: int, secret: bytes | None, *, high_water: int = HIGH_WATER_MESSAGES) -> None:
        self.context = zmq.asyncio.Context()
        self.socket: zmq.asyncio.Socket = self.context.socket(kind)
        self.closed = False
        self._open = True  # whether messages are taken
        self._secret = secret
        self._authenticator = Authenticator(self.context, secret)
        self._events: zmq.asyncio.Socket | None = None
        self._monitor: asyncio.Task[None] | None = None
        self.socket.sndhwm = self.socket.rcvhwm = high_water
        self.socket.linger = round(LINGER_SECONDS * 1000)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_CONTROL_BYTES + _FRAME_OVERHEAD_BYTES)
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, round(PING_SECONDS * 1000))
        self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(PEER_TIMEOUT_SECONDS * 1000))

    async def bind(self, address: str) -> str:
        """Listens; returns the address with its real port. Raises ConfigError: taken, malformed, or public without a secret.

        A plug that could not bind is closed.
        """
        try:
            require_secret(address, self._secret)
            self._authenticator.start()
            curve_server(self.socket, self._secret)
            self.socket.ipv6 = "[" in address
            self.socket.bind(address)
        except zmq.ZMQError as error:
            await self.close()
            raise ConfigError(f"cannot bind {address!r}: {error.strerror}") from error
        except ConfigError:
            await self.close()
            raise
        return self.socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def connect(
        self,
        address: str,
        watch: Callable[[bool], None],
        *,
        queue: bool = False,
        refused: Callable[[], None] | None = None,
    ) -> None:
        """Connects, and reconnects, in the background. Messages are taken while connected, or with `queue` from now on.

        `watch(True)` is called when a connection stands, `watch(False)` when it breaks: what was under way may be lost then.
        `refused()` is called, once, for a peer that does not share our secret or does not speak ZeroMQ; attempts go on.
        Raises ConfigError on a malformed address; the plug is closed then. (ZMQ_IMMEDIATE is not used: with it, messages that
        have come but are not read yet go down with the connection.)
        """
        try:
            curve_client(self.socket, self._secret)
            self.socket.ipv6 = "[" in address
            self._events = self.socket.get_monitor_socket(
                HANDSHAKE_FAILED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
            )
            self.socket.connect(address)
        except zmq.ZMQError as error:
            self._close_sockets(0)
            self.context.term()
            raise ConfigError(f"cannot connect to {address!r}: {error.strerror}") from error
        self._open = queue
        self._monitor = asyncio.create_task(self._follow(self._events, watch, queue, refused), name="zmq monitor")

    def send_now(self, frames: Sequence[bytes]) -> bool:
        """Queues a message without waiting; False when the peer is not connected, or takes no more. LinkClosedError: closed."""
        if self.closed:
            raise LinkClosedError("the socket is closed")
        if not self._open:
            return False
        sent = self.socket.send_multipart(frames, flags=zmq.DONTWAIT)
        assert isinstance(sent, asyncio.Future), "a send that does not wait is done on return"
        error = sent.exception()
        if error is None:
            return True
        if isinstance(error, zmq.ZMQError) and error.errno in (errno.EAGAIN, errno.EHOSTUNREACH):
            return False
        raise error

    async def receive(self) -> list[bytes]:
        """The next message's frames; waits without limit. Raises LinkClosedError when this side is closed meanwhile."""
        if self.closed:
            raise LinkClosedError("the socket is closed")
        try:
            return await self.socket.recv_multipart()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.closed and not (task and task.cancelling()):
                raise LinkClosedError("the socket was closed") from None
            raise

    async def close(self, linger_seconds: float | None = None) -> None:
        """Idempotent. Gives what is queued `linger_seconds` (default LINGER_SECONDS) to leave."""
        if self.closed:
            return
        self._close_sockets(LINGER_SECONDS if linger_seconds is None else linger_seconds)
        try:
            await self._authenticator.stop()
            if self._monitor is not None:
                self._monitor.cancel()
                await asyncio.wait([self._monitor])
        finally:  # a cancelled close still ends the context
            await asyncio.shield(asyncio.to_thread(self.context.term))

    async def _follow(
        self,
        events: zmq.asyncio.Socket,
        watch: Callable[[bool], None],
        queue: bool,
        refused: Callable[[], None] | None,
    ) -> None:
        """Tells of a connection that stands, and of one that stood and broke; an attempt that failed is neither."""
        connected, failures = False, 0
        while True:
            event = (await recv_monitor_message(events))["event"]
            failures += handshake_failures(event)
            if failures > MAX_HANDSHAKE_FAILURES and refused is not None:
                refused()
                refused = None
            stands = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if stands != connected:
                connected = stands
                self._open = queue or connected
                watch(connected)

    def _close_sockets(self, linger_seconds: float) -> None:
        self.closed = True
        if self._events is not None:
            self.socket.disable_monitor()
            self._events.close(linger=0)
        self.socket.close(linger=round(linger_seconds * 1000))
