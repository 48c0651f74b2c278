"""From an address to a link: the scheme chooses the transport, and foreign errors become ours, here and nowhere else.

inproc://<name>    inside this process, for tests
tcp://<host>:<port>, zmq://<host>:<port>, ucx://<host>:<port>     port 0 listens on a free one
"""

from __future__ import annotations

import asyncio

from packhorse.errors import ConfigError, LinkClosedError, LinkTimeoutError

from .inproc_link import InprocLink, InprocListener
from .link import Link, Listener
from .security import require_secret
from .tcp_link import TcpLink, TcpListener
from .zmq_link import ZmqLink, ZmqListener

SCHEMES = ("inproc", "tcp", "zmq", "ucx")


async def connect(address: str, *, timeout_seconds: float = 10, secret: bytes | None = None) -> Link:
    """A link to whoever listens at `address`.

    Raises ConfigError (malformed address, missing package), LinkTimeoutError, LinkClosedError (refused, unknown host),
    HandshakeError (zmq: wrong secret); each names the address. tcp and ucx prove `secret` later, in handshake.py.
    """
    scheme, rest = _split(address)
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _connect(address, scheme, rest, secret)
    except TimeoutError as error:
        raise LinkTimeoutError(f"cannot connect to {address}: no answer within {timeout_seconds:g} s") from error
    except OSError as error:
        raise LinkClosedError(f"cannot connect to {address}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"cannot connect to {address}: {error}") from error


async def listen(address: str, *, secret: bytes | None = None) -> Listener:
    """A listener at `address`. Raises ConfigError: malformed, taken, reachable from outside without a secret, missing package."""
    scheme, rest = _split(address)
    require_secret(address, secret)
    try:
        return await _listen(address, scheme, rest, secret)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot listen on {address}: {error}") from error


async def _connect(address: str, scheme: str, rest: str, secret: bytes | None) -> Link:
    if scheme == "inproc":
        return await InprocLink.connect(address, rest)
    if scheme == "tcp":
        return await TcpLink.connect(address, rest)
    if scheme == "zmq":
        return await ZmqLink.connect(address, rest, secret)
    from .ucx_link import UcxLink

    return await UcxLink.connect(address, rest)


async def _listen(address: str, scheme: str, rest: str, secret: bytes | None) -> Listener:
    if scheme == "inproc":
        return await InprocListener.listen(address, rest)
    if scheme == "tcp":
        return await TcpListener.listen(address, rest)
    if scheme == "zmq":
        return await ZmqListener.listen(address, rest, secret)
    from .ucx_link import UcxListener

    return await UcxListener.listen(address, rest)


def _split(address: str) -> tuple[str, str]:
    scheme, mark, rest = address.partition("://")
    if not mark or scheme not in SCHEMES or not rest:
        raise ConfigError(f"address {address!r} is not <scheme>://<place> with a scheme of {', '.join(SCHEMES)}")
    return scheme, rest
