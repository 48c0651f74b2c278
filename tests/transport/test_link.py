"""The contract of transport.link, held by every link alike."""

from __future__ import annotations

import asyncio
import importlib.util
import struct
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import zmq
import zmq.asyncio

from packhorse.errors import ConfigError, FrameError, LinkClosedError, LinkTimeoutError, TransportError
from tests.waiting import PATIENCE_SECONDS
from transport import framing
from transport.connect import connect, listen
from transport.link import Link, Listener
from transport.messages import Credit, Goodbye, StreamAck

HAS_UCX = importlib.util.find_spec("ucxx") is not None
UCX = pytest.param(
    "ucx", marks=[pytest.mark.ucx, pytest.mark.skipif(not HAS_UCX, reason="the package ucxx is not installed")]
)
every_link = pytest.mark.parametrize("scheme", ["inproc", "tcp", "zmq", UCX])
network_link = pytest.mark.parametrize("scheme", ["tcp", "zmq", UCX])
pytestmark = pytest.mark.usefixtures("no_tasks")


def free_address(scheme: str) -> str:
    return f"inproc://{uuid.uuid4()}" if scheme == "inproc" else f"{scheme}://127.0.0.1:0"


@asynccontextmanager
async def listening(scheme: str) -> AsyncIterator[Listener]:
    listener = await listen(free_address(scheme))
    try:
        yield listener
    finally:
        await listener.close()


async def pair_on(listener: Listener) -> tuple[Link, Link]:
    here = await connect(listener.address, timeout_seconds=PATIENCE_SECONDS)
    return here, await asyncio.wait_for(listener.accept(), PATIENCE_SECONDS)


@asynccontextmanager
async def linked(scheme: str) -> AsyncIterator[tuple[Link, Link]]:
    async with listening(scheme) as listener:
        here, there = await pair_on(listener)
        try:
            yield here, there
        finally:
            await asyncio.gather(here.close(), there.close())


@every_link
async def test_frames_arrive_whole_and_in_order(scheme: str) -> None:
    payloads = [b"", b"x", bytes(range(256)) * 30, b"\xa5" * (3 * 1024 * 1024 + 1), b"", b"end"]
    async with linked(scheme) as (here, there):

        async def send() -> None:
            for i, payload in enumerate(payloads):
                await here.send(Credit(credit_bytes=i), payload)

        sending = asyncio.create_task(send())
        for i, payload in enumerate(payloads):
            frame = await there.receive()
            assert frame.message == Credit(credit_bytes=i)
            assert bytes(frame.payload) == payload
        await sending


@every_link
async def test_the_payload_may_be_reused_after_send(scheme: str) -> None:
    payload = bytearray(b"a" * 300_000)
    async with linked(scheme) as (here, there):
        receiving = asyncio.create_task(there.receive())
        await here.send(Credit(credit_bytes=1), memoryview(payload))
        payload[:] = b"b" * len(payload)
        assert bytes((await receiving).payload) == b"a" * len(payload)


@every_link
async def test_many_small_frames_both_ways_at_once(scheme: str) -> None:
    async with linked(scheme) as (here, there):

        async def send(link: Link) -> None:
            for i in range(1000):
                await link.send(Credit(credit_bytes=i), struct.pack("!I", i))

        async def receive(link: Link) -> None:
            for i in range(1000):
                frame = await link.receive()
                assert (frame.message.credit_bytes, bytes(frame.payload)) == (i, struct.pack("!I", i))

        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(send(here), send(there), receive(here), receive(there))


@every_link
async def test_large_frames_both_ways_at_once(scheme: str) -> None:
    big = b"\x5a" * (4 * 1024 * 1024)
    async with linked(scheme) as (here, there):

        async def send(link: Link) -> None:
            for i in range(8):
                await link.send(Credit(credit_bytes=i), big)

        async def receive(link: Link) -> None:
            for _ in range(8):
                assert bytes((await link.receive()).payload) == big

        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(send(here), send(there), receive(here), receive(there))


@every_link
async def test_an_unread_link_slows_its_sender_and_loses_nothing(scheme: str) -> None:
    async with linked(scheme) as (here, there):
        sent = 0

        async def send() -> None:
            nonlocal sent
            for i in range(400):
                await here.send(Credit(credit_bytes=i), bytes(1024 * 1024))
                sent += 1

        sending = asyncio.create_task(send())
        await asyncio.sleep(1.0)
        assert sent < 300  # bounded by queues and kernel buffers
        for i in range(400):
            assert (await there.receive()).message.credit_bytes == i
        await sending


@every_link
async def test_several_links_on_one_listener(scheme: str) -> None:
    async with listening(scheme) as listener:
        pairs = [await pair_on(listener) for _ in range(4)]
        for i, (here, _) in enumerate(pairs):
            await here.send(Credit(credit_bytes=i), bytes([i]))
        await pairs[0][0].close()
        for i, (here, there) in list(enumerate(pairs))[1:]:
            assert (await there.receive()).message.credit_bytes == i
            await there.send(StreamAck(job_id=str(i)))
            assert (await here.receive()).message.job_id == str(i)
        await asyncio.gather(*(link.close() for pair in pairs for link in pair))


@every_link
async def test_links_outlive_their_listener(scheme: str) -> None:
    async with listening(scheme) as listener:
        here, there = await pair_on(listener)
    with pytest.raises(LinkClosedError):
        await listener.accept()
    with pytest.raises((LinkTimeoutError, LinkClosedError)):
        await connect(listener.address, timeout_seconds=0.5)
    await here.send(Credit(credit_bytes=1))
    assert (await there.receive()).message.credit_bytes == 1
    await asyncio.gather(here.close(), there.close())


@every_link
@pytest.mark.parametrize("closer", [0, 1])
async def test_a_close_is_seen_by_the_peer_after_what_was_sent(scheme: str, closer: int) -> None:
    async with linked(scheme) as pair:
        closing, other = pair[closer], pair[1 - closer]

        async def send_and_close() -> None:
            await closing.send(Goodbye(worker_id="w"), b"last words" * 1000)
            await closing.close()

        closed = asyncio.create_task(send_and_close())
        assert bytes((await other.receive()).payload) == b"last words" * 1000
        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(LinkClosedError):
                await other.receive()
            with pytest.raises(LinkClosedError):
                await send_forever(other)
        await closed


async def send_forever(link: Link) -> None:
    """A byte stream may take some frames before it notices that the peer has closed."""
    while True:
        await link.send(Credit(credit_bytes=1), bytes(1000))


@every_link
async def test_closing_ends_a_pending_receive_here(scheme: str) -> None:
    async with linked(scheme) as (here, there):
        waiting = [asyncio.create_task(link.receive()) for link in (here, there)]
        await asyncio.sleep(0.05)
        await here.close()
        await here.close()
        for task in waiting:
            with pytest.raises(LinkClosedError):
                await asyncio.wait_for(task, PATIENCE_SECONDS)
        with pytest.raises(LinkClosedError):
            await here.send(Credit(credit_bytes=1))
        with pytest.raises(LinkClosedError):
            await here.receive()


@every_link
async def test_closing_a_listener_ends_a_pending_accept(scheme: str) -> None:
    async with listening(scheme) as listener:
        waiting = asyncio.create_task(listener.accept())
        await asyncio.sleep(0.05)
        await listener.close()
        with pytest.raises(LinkClosedError):
            await asyncio.wait_for(waiting, PATIENCE_SECONDS)


@every_link
async def test_connecting_to_nobody_fails_in_time_and_names_the_address(scheme: str) -> None:
    async with listening(scheme) as listener:
        address = listener.address
    started = time.monotonic()
    with pytest.raises((LinkTimeoutError, LinkClosedError), match=address):
        await connect(address, timeout_seconds=0.5)
    assert time.monotonic() - started < 10  # 0.5 s, and what a busy machine adds


@every_link
async def test_the_sender_refuses_an_oversize_frame_and_goes_on(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MAX_PAYLOAD_BYTES", 1000)
    async with linked(scheme) as (here, there):
        with pytest.raises(FrameError, match=r"1001 bytes; the limit is 1000"):
            await here.send(Credit(credit_bytes=1), bytes(1001))
        await here.send(Credit(credit_bytes=2), bytes(1000))
        assert (await there.receive()).message.credit_bytes == 2


@every_link
async def test_an_address_that_is_taken_is_refused(scheme: str) -> None:
    async with listening(scheme) as listener:
        with pytest.raises(ConfigError, match=listener.address.partition("://")[2]):
            await listen(listener.address)


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1:80", "udp://127.0.0.1:80", "tcp://", "tcp://127.0.0.1", "zmq://127.0.0.1:99999"]
)
async def test_a_bad_address_is_named(address: str) -> None:
    with pytest.raises(ConfigError, match=repr(address)):
        await connect(address)
    with pytest.raises(ConfigError):
        await listen(address, secret=b"secret")


@network_link
async def test_a_public_bind_needs_a_secret(scheme: str) -> None:
    with pytest.raises(ConfigError, match="secret"):
        await listen(f"{scheme}://0.0.0.0:0")


RAW_TCP = {
    "oversize header": struct.pack("!4sIQ", b"PHL1", 2**31, 0),
    "oversize payload": struct.pack("!4sIQ", b"PHL1", 10, 2**60),
    "foreign protocol": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "no message": struct.pack("!4sIQ", b"PHL1", 4, 0) + b"\xc1\xc1\xc1\xc1",
}


@pytest.mark.parametrize("attack", RAW_TCP)
async def test_the_tcp_receiver_refuses_what_is_no_frame(attack: str) -> None:
    async with listening("tcp") as listener:
        host, port = listener.address.removeprefix("tcp://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        link = await listener.accept()
        writer.write(RAW_TCP[attack])
        with pytest.raises(FrameError):
            await asyncio.wait_for(link.receive(), PATIENCE_SECONDS)
        with pytest.raises(LinkClosedError):
            await link.receive()
        await link.close()
        writer.close()
        with suppress(ConnectionResetError):
            await writer.wait_closed()


RAW_ZMQ = {
    "oversize header": [b"F", bytes(16 * 1024 * 1024 + 1), b""],
    "one part": [b"F", b"header"],
    "no message": [b"F", b"\xc1", b""],
}


@pytest.mark.parametrize("attack", RAW_ZMQ)
async def test_the_zmq_receiver_refuses_what_is_no_frame(attack: str) -> None:
    async with listening("zmq") as listener, raw_dealer(listener) as dealer:
        link = await open_raw(dealer, listener)
        await dealer.send_multipart(RAW_ZMQ[attack])
        with pytest.raises(FrameError):
            await asyncio.wait_for(link.receive(), PATIENCE_SECONDS)
        with pytest.raises(LinkClosedError):
            await link.receive()
        await link.close()


async def test_the_zmq_receiver_drops_a_peer_with_an_oversize_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MAX_PAYLOAD_BYTES", 100_000)
    monkeypatch.setattr(framing, "MAX_CONTROL_BYTES", 100_000)
    async with listening("zmq") as listener, raw_dealer(listener) as dealer:
        link = await open_raw(dealer, listener)
        await dealer.send_multipart([b"F", b"header", bytes(200_000)])
        with pytest.raises(TransportError):
            await asyncio.wait_for(link.receive(), PATIENCE_SECONDS)
        await link.close()


async def test_a_zmq_peer_that_sends_before_it_opens_is_told_off() -> None:
    async with listening("zmq") as listener, raw_dealer(listener) as dealer:
        await dealer.send_multipart([b"F", b"header", b"payload"])
        assert await asyncio.wait_for(dealer.recv_multipart(), PATIENCE_SECONDS) == [b"C"]


@asynccontextmanager
async def raw_dealer(listener: Listener) -> AsyncIterator[zmq.asyncio.Socket]:
    context = zmq.asyncio.Context()
    with context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(listener.address.replace("zmq", "tcp"))
        yield dealer
    context.term()


async def open_raw(dealer: zmq.asyncio.Socket, listener: Listener) -> Link:
    await dealer.send_multipart([b"O"])
    link = await asyncio.wait_for(listener.accept(), PATIENCE_SECONDS)
    assert await dealer.recv_multipart() == [b"W"]
    return link
