"""One shared secret guards the internal planes: CURVE keys for ZeroMQ sockets, HMAC proofs for links without CURVE.

The server's and the client's key pair are both derived from the secret (HKDF-SHA256, RFC 5869), so nothing but the secret has
to be handed to a process. A socket that calls `curve_server` admits nobody until an `Authenticator` runs on its context: it
fails closed. With no secret everything is plain, which `require_secret` allows on loopback alone.

This file knows nothing of messages, of links or of where the secret comes from.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
from dataclasses import dataclass, field
from typing import Any, Self

import zmq
import zmq.asyncio
from zmq.utils import z85

from packhorse.errors import ConfigError

log = logging.getLogger(__name__)

ZAP_ADDRESS = "inproc://zeromq.zap.01"
ZAP_VERSION = b"1.0"
ZAP_DOMAIN = "packhorse"
_SALT = b"packhorse/security/1"
_LOCAL_SCHEMES = ("inproc", "ipc")


@dataclass(frozen=True)
class CurveKeys:
    """Both key pairs in z85 (40 ASCII bytes each); who holds the secret has all four."""

    server_public: bytes
    server_secret: bytes = field(repr=False)
    client_public: bytes
    client_secret: bytes = field(repr=False)


def derive(secret: bytes, label: str) -> bytes:
    """32 bytes for the purpose `label`: HKDF-SHA256 of one block. Raises ConfigError on an empty secret."""
    if not secret:
        raise ConfigError("the shared secret is empty: set PACKHORSE_SECRET or PACKHORSE_SECRET_FILE")
    key = hmac.digest(_SALT, secret, hashlib.sha256)
    return hmac.digest(key, label.encode() + b"\x01", hashlib.sha256)


def curve_keys(secret: bytes) -> CurveKeys:
    """The key pairs that belong to `secret`, the same in every process."""
    server, client = z85.encode(derive(secret, "curve server")), z85.encode(derive(secret, "curve client"))
    return CurveKeys(zmq.curve_public(server), server, zmq.curve_public(client), client)


def curve_server(socket: zmq.Socket[Any], secret: bytes | None) -> None:
    """Makes `socket` a CURVE server; call before bind, with an Authenticator on the same context. None: leaves it plain."""
    if secret is None:
        return
    keys = curve_keys(secret)
    socket.curve_secretkey = keys.server_secret
    socket.curve_publickey = keys.server_public
    socket.curve_server = True
    socket.setsockopt_string(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def curve_client(socket: zmq.Socket[Any], secret: bytes | None) -> None:
    """Makes `socket` a CURVE client; call before connect. None: leaves it plain."""
    if secret is None:
        return
    keys = curve_keys(secret)
    socket.curve_secretkey = keys.client_secret
    socket.curve_publickey = keys.client_public
    socket.curve_serverkey = keys.server_public


class Authenticator:
    """Answers the ZAP requests (RFC 27) of one context: the client key of `secret` may connect, nobody else.

    `start` before any bind, `stop` after the sockets are closed. One per context. With secret None both do nothing.
    """

    def __init__(self, context: zmq.asyncio.Context, secret: bytes | None) -> None:
        self._context = context
        self._admitted = z85.decode(curve_keys(secret).client_public) if secret is not None else None
        self._socket: zmq.asyncio.Socket | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Needs a running event loop. Raises ConfigError when the context has an authenticator already."""
        if self._admitted is None or self._socket is not None:
            return
        socket = self._context.socket(zmq.REP)
        socket.linger = 0
        try:
            socket.bind(ZAP_ADDRESS)
        except zmq.ZMQError as error:
            socket.close()
            raise ConfigError("a ZeroMQ context can have one authenticator alone") from error
        self._socket = socket
        self._task = asyncio.create_task(self._run(socket), name="zap")

    async def stop(self) -> None:
        """Idempotent."""
        task, socket, self._task, self._socket = self._task, self._socket, None, None
        if socket is not None:
            socket.close()
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _run(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            request = await socket.recv_multipart()
            await socket.send_multipart(self._answer(request))

    def _answer(self, request: list[bytes]) -> list[bytes]:
        """Request: version, id, domain, address, identity, mechanism, credentials; reply: version, id, status, text, user, metadata."""
        request_id = request[1] if len(request) > 1 else b""
        admitted = (
            len(request) == 7
            and request[0] == ZAP_VERSION
            and request[5] == b"CURVE"
            and self._admitted is not None
            and hmac.compare_digest(request[6], self._admitted)
        )
        if admitted:
            return [ZAP_VERSION, request_id, b"200", b"OK", b"packhorse", b""]
        log.warning("refused a connection from %s: wrong key", request[3] if len(request) > 3 else "an unknown address")
        return [ZAP_VERSION, request_id, b"400", b"wrong key", b"", b""]


def proof(secret: bytes, label: str, *parts: bytes) -> bytes:
    """HMAC-SHA256 over `parts` (each with its length, so that no two lists of parts collide), keyed for `label`.

    A challenge-response over a link without CURVE: each side proves the secret over both nonces under its own label.
    """
    mac = hmac.new(derive(secret, f"proof {label}"), digestmod=hashlib.sha256)
    for part in parts:
        mac.update(len(part).to_bytes(8, "little") + part)
    return mac.digest()


def proof_holds(received: bytes, secret: bytes, label: str, *parts: bytes) -> bool:
    """Whether `received` is `proof(secret, label, *parts)`, in constant time."""
    return hmac.compare_digest(received, proof(secret, label, *parts))


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach a bind to `address` (with a scheme or without): 127.0.0.0/8, ::1, localhost, inproc, ipc."""
    scheme, separator, rest = address.rpartition("://")
    if separator and scheme in _LOCAL_SCHEMES:
        return True
    host = rest.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_secret(bind_address: str, secret: bytes | None) -> None:
    """Raises ConfigError when `bind_address` can be reached from outside and there is no secret."""
    if not secret and not is_loopback(bind_address):
        raise ConfigError(
            f"binding {bind_address} lets other machines connect, which needs a shared secret: "
            "set PACKHORSE_SECRET or PACKHORSE_SECRET_FILE, or bind 127.0.0.1",
            param="secret",
        )
