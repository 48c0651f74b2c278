"""A connected TCP socket under asyncio that reads and writes whole buffers in place, without a stream's extra copies.

Shared by tcp_link.py and ucx_link.py. A cancelled or failed read or write leaves a torn frame, so it ends the connection.
This file knows nothing of messages.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from packhorse.errors import LinkClosedError, LinkTimeoutError

from .framing import PREFIX_BYTES, SEND_TIMEOUT_SECONDS, Payload, parse_prefix, prefix

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.1
_JOIN_BYTES = 64 * 1024  # a smaller payload is copied behind its header: one system call and packet fewer
_KEEPALIVE = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 15_000))


def parse_host_port(address: str, rest: str) -> tuple[str, int]:
    """(host, port) of `rest`, the part of `address` behind its scheme. Raises ValueError saying what is wrong."""
    host, colon, port = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is not <scheme>://<host>:<port>")
    return host, int(port)


def format_host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def dial(host: str, port: int) -> socket.socket:
    """A connected, non-blocking socket. Raises OSError."""
    loop = asyncio.get_running_loop()
    error = OSError(f"{host} has no address")
    for family, kind, protocol, _, place in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, place)
        except OSError as failure:
            sock.close()
            error = failure
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise error


async def bind(host: str, port: int) -> socket.socket:
    """A listening, non-blocking socket. Raises OSError."""
    loop = asyncio.get_running_loop()
    family, kind, protocol, _, place = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind(place)
        sock.listen(128)
    except OSError:
        sock.close()
        raise
    return sock


class Door:
    """Owns a listening `sock` and accepts wires on it. `address` has the real port."""

    def __init__(self, sock: socket.socket, scheme: str) -> None:
        self.address = f"{scheme}://{format_host_port(*sock.getsockname()[:2])}"
        self._scheme = scheme
        self._sock = sock
        self._waiting: asyncio.Future[None] | None = None
        self._closed = False

    async def accept(self) -> Wire:
        """The next connection; waits without limit. Raises LinkClosedError once closed."""
        loop = asyncio.get_running_loop()
        while not self._closed:
            self._waiting = loop.create_future()
            try:
                sock, peer = await loop.sock_accept(self._sock)
                return Wire(sock, f"{self._scheme}://{format_host_port(*peer[:2])}")
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.warning("%s cannot accept: %s", self.address, error)
                    await asyncio.sleep(_RETRY_SECONDS)
                elif error.errno != errno.ECONNABORTED:
                    break
            finally:
                self._waiting.set_result(None)
        raise LinkClosedError(f"{self.address} is closed")

    async def close(self) -> None:
        """Idempotent."""
        if self._closed:
            return
        self._closed = True
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes a pending accept
        if self._waiting is not None:
            await asyncio.wait([self._waiting], timeout=1)
        self._sock.close()


class Wire:
    """Owns `sock`. One write and one read may run at the same time."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.address = address
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._busy: set[asyncio.Future[None]] = set()
        self.closed = False
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    async def write_frame(self, header: bytes, payload: Payload, payload_bytes: int | None = None) -> None:
        """One frame. With `payload_bytes` the prefix announces that many, and the payload travels another way."""
        start = prefix(len(header), len(payload) if payload_bytes is None else payload_bytes) + header
        with self._guard("send"):
            try:
                async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                    if len(payload) <= _JOIN_BYTES:
                        await self._loop.sock_sendall(self._sock, start + payload)
                    else:
                        await self._loop.sock_sendall(self._sock, start)
                        await self._loop.sock_sendall(self._sock, payload)
            except TimeoutError as error:
                self.hang_up()
                raise LinkTimeoutError(f"{self.address} took nothing for {SEND_TIMEOUT_SECONDS:g} s") from error

    async def read_start(self) -> tuple[bytearray, int]:
        """(header, payload_bytes) of the next frame, whose payload comes next. Raises FrameError, LinkClosedError."""
        header_bytes, payload_bytes = parse_prefix(await self.read(PREFIX_BYTES))
        return await self.read(header_bytes), payload_bytes

    async def read(self, num_bytes: int) -> bytearray:
        """Exactly `num_bytes`. Raises LinkClosedError when they do not come."""
        data = bytearray(num_bytes)
        view = memoryview(data)
        with self._guard("receive"):
            while view:
                count = await self._loop.sock_recv_into(self._sock, view)
                if not count:
                    raise LinkClosedError(f"{self.address} closed the link")
                view = view[count:]
        return data

    def peer_hung_up(self) -> bool:
        """Whether the peer's end is closed or dead, even where unread bytes lie before its end mark."""
        if self._sock.fileno() < 0:
            return True  # closed here
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def hang_up(self, how: int = socket.SHUT_RDWR) -> None:
        """Ends the connection; pending reads and writes raise LinkClosedError."""
        self.closed = True
        with suppress(OSError):  # already gone
            self._sock.shutdown(how)

    async def close(self) -> None:
        self.hang_up()
        if self._busy:
            await asyncio.wait(self._busy, timeout=1)
        self._sock.close()

    @contextmanager
    def _guard(self, action: str) -> Iterator[None]:
        if self.closed:
            raise LinkClosedError(f"the link to {self.address} is closed")
        done: asyncio.Future[None] = self._loop.create_future()
        self._busy.add(done)
        try:
            yield
        except OSError as error:
            self.hang_up()
            raise LinkClosedError(f"{action} on {self.address}: {error}") from error
        except BaseException:
            self.hang_up()
            raise
        finally:
            self._busy.discard(done)
            done.set_result(None)
