"""The control plane on real sockets: bounded, outliving bad peers and restarts on either side."""

from __future__ import annotations

import asyncio

import pytest
import zmq
import zmq.asyncio

from packhorse.errors import ConfigError, LinkClosedError, UnavailableError
from tests.transport.control_fakes import LOCAL
from tests.waiting import PATIENCE_SECONDS, until
from transport.control import ControlClient, ControlServer
from transport.messages import (
    MAX_CONTROL_BYTES,
    WIRE_VERSION,
    Goodbye,
    StatusRequest,
)
from transport.sockets import Plug

pytestmark = pytest.mark.usefixtures("no_tasks")


@pytest.mark.parametrize("secret", [None, b"the shared secret"])
async def test_messages_go_both_ways(secret: bytes | None) -> None:
    async with ControlServer(LOCAL, secret) as server, ControlClient(server.address, "gateway-1", secret) as client:
        await client.send(StatusRequest())
        peer, message = await server.receive()
        assert (peer, message) == (b"gateway-1", StatusRequest())
        assert await server.send(peer, Goodbye(worker_id="x"))
        assert await client.receive() == Goodbye(worker_id="x")


@pytest.mark.parametrize("secret", [None, b"a wrong secret"])
async def test_a_wrong_secret_is_never_heard(secret: bytes | None) -> None:
    async with ControlServer(LOCAL, b"right") as server, ControlClient(server.address, "gateway-1", secret) as client:
        with pytest.raises(UnavailableError, match=server.address):
            await client.send(StatusRequest(), timeout_seconds=0.4)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.receive(), 0.2)


async def test_a_public_bind_needs_a_secret() -> None:
    with pytest.raises(ConfigError, match=r"tcp://0\.0\.0\.0:0.*PACKHORSE_SECRET"):
        await ControlServer("tcp://0.0.0.0:0").start()


async def test_a_taken_or_malformed_address_is_a_config_error() -> None:
    async with ControlServer(LOCAL) as server:
        with pytest.raises(ConfigError, match=server.address):
            await ControlServer(server.address).start()
    for address in ("nonsense", "tcp://127.0.0.1:notaport"):
        with pytest.raises(ConfigError, match=address):
            ControlClient(address, "g")
    with pytest.raises(ConfigError, match="identity"):
        ControlClient("tcp://127.0.0.1:1", "")


async def test_sending_to_a_peer_that_is_gone_is_dropped_and_told(caplog: pytest.LogCaptureFixture) -> None:
    async with ControlServer(LOCAL) as server:
        assert not await server.send(b"nobody", StatusRequest())
        assert "nobody" in caplog.text


async def test_malformed_messages_are_dropped_and_the_server_lives(caplog: pytest.LogCaptureFixture) -> None:
    async with ControlServer(LOCAL) as server, ControlClient(server.address, "honest") as client:
        with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as raw:
            raw.linger = 0
            raw.identity = b"rogue"
            raw.connect(server.address)
            ours = bytes([0x92, WIRE_VERSION])
            for frames in ([b"garbage"], [b""], [b"a", b"b"], [ours + b"\x80"], [b"\x92\x09\x80"], [b"\xc1"]):
                await raw.send_multipart(frames)
            await raw.send_multipart([ours + b"\x81\xa4kind\xaestatus_request"])
            assert await server.receive() == (b"rogue", StatusRequest())
        assert caplog.text.count("rogue") == 6
        await client.send(StatusRequest())
        assert await server.receive() == (b"honest", StatusRequest())


async def test_an_oversized_message_costs_its_sender_the_connection_alone() -> None:
    async with ControlServer(LOCAL) as server, ControlClient(server.address, "honest") as client:
        with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as raw:
            raw.linger = 0
            raw.connect(server.address)
            await raw.send(b"x" * (MAX_CONTROL_BYTES + 4096))
            await client.send(StatusRequest())
            assert await server.receive() == (b"honest", StatusRequest())


async def test_a_peer_under_the_same_identity_takes_over() -> None:
    async with ControlServer(LOCAL) as server, ControlClient(server.address, "worker") as first:
        await first.send(StatusRequest())
        await server.receive()
        async with ControlClient(server.address, "worker") as second:
            await second.send(StatusRequest())
            peer, _ = await server.receive()
            assert await server.send(peer, Goodbye(worker_id="to-second"))
            assert await asyncio.wait_for(second.receive(), PATIENCE_SECONDS) == Goodbye(worker_id="to-second")


async def test_a_client_with_no_server_says_so_and_tells_of_a_broken_connection() -> None:
    broken: list[bool] = []
    server = ControlServer(LOCAL)
    await server.start()
    async with ControlClient(server.address, "g", disconnected=lambda: broken.append(True)) as client:
        await client.send(StatusRequest())
        await server.receive()
        await server.stop()
        await until(lambda: bool(broken))
        assert not client.send_now(StatusRequest())
        with pytest.raises(UnavailableError, match=server.address):
            await client.send(StatusRequest(), timeout_seconds=0.1)
        async with ControlServer(server.address) as again:
            await client.send(StatusRequest())
            assert await again.receive() == (b"g", StatusRequest())


async def test_what_came_before_a_broken_connection_can_still_be_read() -> None:
    server = ControlServer(LOCAL)
    await server.start()
    broken = asyncio.Event()
    async with ControlClient(server.address, "g", disconnected=broken.set) as client:
        await client.send(StatusRequest())
        peer, _ = await server.receive()
        for name in "abc":
            assert await server.send(peer, Goodbye(worker_id=name))
        await server.stop()
        await broken.wait()
        assert [(await client.receive()).worker_id for _ in range(3)] == ["a", "b", "c"]


async def test_a_pending_receive_ends_when_its_side_closes() -> None:
    server = ControlServer(LOCAL)
    await server.start()
    client = ControlClient(server.address, "g")
    pending = [asyncio.ensure_future(server.receive()), asyncio.ensure_future(client.receive())]
    await asyncio.sleep(0.05)
    await client.close()
    await server.stop()
    for task in pending:
        with pytest.raises(LinkClosedError):
            await task
    with pytest.raises(LinkClosedError):
        await client.receive()
    with pytest.raises(LinkClosedError):
        await client.send(StatusRequest())


async def test_a_cancelled_close_still_ends_the_context() -> None:
    plug = Plug(zmq.DEALER, None)
    plug.connect("tcp://127.0.0.1:9", lambda _: None)
    closing = asyncio.create_task(plug.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await until(lambda: plug.context.closed)
