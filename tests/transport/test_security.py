"""Keys are derived alike everywhere, a wrong secret is never heard, a public bind needs a secret."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator

import pytest
import zmq
import zmq.asyncio

from packhorse.errors import ConfigError
from transport.security import (
    Authenticator,
    curve_client,
    curve_keys,
    curve_server,
    derive,
    is_loopback,
    proof,
    proof_holds,
    require_secret,
)

pytestmark = pytest.mark.usefixtures("no_tasks")


@contextlib.asynccontextmanager
async def pull_socket(secret: bytes | None, *, authenticate: bool = True) -> AsyncIterator[zmq.asyncio.Socket]:
    context = zmq.asyncio.Context()
    authenticator = Authenticator(context, secret if authenticate else None)
    authenticator.start()
    socket = context.socket(zmq.PULL)
    curve_server(socket, secret)
    socket.bind("tcp://127.0.0.1:0")
    try:
        yield socket
    finally:
        socket.close(linger=0)
        await authenticator.stop()
        context.term()


@contextlib.asynccontextmanager
async def push_socket(address: str, secret: bytes | None) -> AsyncIterator[zmq.asyncio.Socket]:
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.PUSH)
    curve_client(socket, secret)
    socket.connect(address)
    try:
        yield socket
    finally:
        socket.close(linger=0)
        context.term()


async def heard(server_secret: bytes | None, client_secret: bytes | None, *, authenticate: bool = True) -> bool:
    async with (
        pull_socket(server_secret, authenticate=authenticate) as server,
        push_socket(server.last_endpoint.decode(), client_secret) as client,
    ):
        sending = asyncio.ensure_future(client.send(b"hello"))
        arrived = bool(await server.poll(timeout=2000 if server_secret == client_secret and authenticate else 400))
        sending.cancel()
        return arrived and await server.recv() == b"hello"


def test_keys_are_deterministic_and_differ_by_role_and_secret() -> None:
    keys = curve_keys(b"one secret")
    assert keys == curve_keys(b"one secret")
    others = curve_keys(b"another secret")
    public = {keys.server_public, keys.client_public, others.server_public, others.client_public}
    assert len(public) == 4
    assert keys.server_secret.decode() not in repr(keys)


def test_derivation_is_hkdf() -> None:
    """RFC 5869 with one block: extract, then expand."""
    extracted = hmac.new(b"packhorse/security/1", b"s", hashlib.sha256).digest()
    assert derive(b"s", "label") == hmac.new(extracted, b"label\x01", hashlib.sha256).digest()


def test_empty_secret_is_refused() -> None:
    with pytest.raises(ConfigError, match="PACKHORSE_SECRET"):
        curve_keys(b"")


@pytest.mark.parametrize("secret", [None, b"the shared secret"])
async def test_the_same_secret_is_heard(secret: bytes | None) -> None:
    assert await heard(secret, secret)


@pytest.mark.parametrize("client_secret", [None, b"a wrong secret"])
async def test_a_wrong_or_missing_secret_is_never_heard(client_secret: bytes | None) -> None:
    assert not await heard(b"the shared secret", client_secret)


async def test_a_client_that_knows_the_server_key_alone_is_never_heard() -> None:
    async with pull_socket(b"the shared secret") as server:
        context = zmq.asyncio.Context()
        socket = context.socket(zmq.PUSH)
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.curve_serverkey = curve_keys(b"the shared secret").server_public
        socket.connect(server.last_endpoint.decode())
        sending = asyncio.ensure_future(socket.send(b"hello"))
        assert not await server.poll(timeout=400)
        sending.cancel()
        socket.close(linger=0)
        context.term()


async def test_without_an_authenticator_a_curve_server_admits_nobody() -> None:
    assert not await heard(b"the shared secret", b"the shared secret", authenticate=False)


async def test_one_authenticator_per_context() -> None:
    context = zmq.asyncio.Context()
    async with Authenticator(context, b"s"):
        with pytest.raises(ConfigError, match="one authenticator"):
            Authenticator(context, b"s").start()
    context.term()


@pytest.mark.parametrize(
    "address",
    [
        "tcp://127.0.0.1:5600",
        "tcp://127.8.9.1:0",
        "tcp://[::1]:5600",
        "tcp://localhost:1",
        "inproc://a",
        "ipc:///tmp/a",
        "127.0.0.1:0",
        "zmq://127.0.0.1:0",
        "ucx://localhost:0",
    ],
)
def test_loopback_needs_no_secret(address: str) -> None:
    assert is_loopback(address)
    require_secret(address, None)


@pytest.mark.parametrize(
    "address",
    [
        "tcp://0.0.0.0:5600",
        "tcp://*:5600",
        "tcp://[::]:5600",
        "tcp://10.0.0.1:5600",
        "tcp://eth0:5600",
        "0.0.0.0:0",
        "tcp://localhost.example:1",
        "tcp://127.0.0.1.example:1",
        "tcp://127.0.0.1:0;0.0.0.0:5600",
    ],
)
def test_any_other_bind_needs_a_secret(address: str) -> None:
    for missing in (None, b""):
        with pytest.raises(ConfigError) as caught:
            require_secret(address, missing)
        assert address in caught.value.message
        assert "PACKHORSE_SECRET" in caught.value.message
        assert "PACKHORSE_SECRET_FILE" in caught.value.message
    require_secret(address, b"s")


def test_proofs_bind_secret_label_and_parts() -> None:
    right = proof(b"s", "client", b"ab", b"c")
    assert proof_holds(right, b"s", "client", b"ab", b"c")
    assert not proof_holds(right, b"s", "client", b"a", b"bc")
    assert not proof_holds(right, b"s", "server", b"ab", b"c")
    assert not proof_holds(right, b"t", "client", b"ab", b"c")
    assert not proof_holds(b"", b"s", "client", b"ab", b"c")
