"""Tokens arrive in order and are never lost in silence: a gateway that reads nothing, breaks off or never was is reported."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import zmq
import zmq.asyncio

from packhorse.errors import ConfigError, LinkClosedError
from tests.waiting import until
from transport.messages import StatusRequest, TokenOutput, Tokens, encode
from transport.tokens import TokenReceiver, TokenSender

pytestmark = pytest.mark.usefixtures("no_tasks")

LOCAL = "tcp://127.0.0.1:0"


def tokens(index: int, text: str = "job-1") -> Tokens:
    return Tokens(worker_id="decode-1", outputs=(TokenOutput(job_id=text, index=index, token_id=7),))


@pytest.mark.parametrize("secret", [None, b"the shared secret"])
async def test_tokens_arrive_in_order_at_each_gateway(secret: bytes | None) -> None:
    lost: list[str] = []
    async with (
        TokenReceiver(LOCAL, secret) as one,
        TokenReceiver(LOCAL, secret) as two,
        TokenSender(lost.append, secret) as sender,
    ):
        for index in range(50):
            sender.send(one.address, tokens(index))
        sender.send(two.address, tokens(99))
        assert [await one.receive() for _ in range(50)] == [tokens(index) for index in range(50)]
        assert await two.receive() == tokens(99)
        assert sender.num_outlets == 2
    assert lost == []


async def test_tokens_sent_before_close_still_arrive() -> None:
    async with TokenReceiver(LOCAL) as receiver:
        async with TokenSender(lambda _: None) as sender:
            for index in range(20):
                sender.send(receiver.address, tokens(index))
            await receiver.receive()
        for index in range(1, 20):
            assert await receiver.receive() == tokens(index)
        with pytest.raises(LinkClosedError):
            sender.send(receiver.address, tokens(0))


async def test_a_gateway_that_reads_nothing_does_not_block_and_is_reported() -> None:
    lost: list[str] = []
    async with TokenReceiver(LOCAL) as receiver, TokenReceiver(LOCAL) as other:
        sender = TokenSender(lost.append, max_queued=5)
        loop = asyncio.get_running_loop()
        for index in range(200_000):
            before = loop.time()
            sender.send(receiver.address, tokens(index, "x" * 10_000))
            assert loop.time() - before < 10.0  # whoever waits for this gateway waits for ever
            if index % 100 == 0:
                await asyncio.sleep(0)
            if lost:
                break
        assert lost
        assert set(lost) == {receiver.address}
        sender.send(other.address, tokens(1))
        assert await other.receive() == tokens(1)
        await sender.close()


async def test_a_broken_connection_is_reported() -> None:
    lost: list[str] = []
    receiver = TokenReceiver(LOCAL)
    await receiver.start()
    async with TokenSender(lost.append) as sender:
        sender.send(receiver.address, tokens(0))
        await receiver.receive()
        await receiver.stop()
        await until(lambda: lost == [receiver.address])


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense"])
async def test_a_gateway_that_never_was_is_reported_and_given_up(address: str) -> None:
    lost: list[str] = []
    async with TokenSender(lost.append, connect_seconds=0.2) as sender:
        sender.send(address, tokens(0))
        assert lost == []  # never from inside send
        await until(lambda: lost == [address] and sender.num_outlets == 0)


async def test_idle_ways_are_closed_and_opened_again() -> None:
    lost: list[str] = []
    async with TokenReceiver(LOCAL) as receiver, TokenSender(lost.append, idle_seconds=0.2) as sender:
        sender.send(receiver.address, tokens(0))
        assert await receiver.receive() == tokens(0)
        await until(lambda: sender.num_outlets == 0)
        sender.send(receiver.address, tokens(1))
        assert await receiver.receive() == tokens(1)
    assert lost == []


async def test_what_is_no_tokens_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async with TokenReceiver(LOCAL) as receiver:
        with zmq.asyncio.Context() as context, context.socket(zmq.PUSH) as raw:
            raw.connect(receiver.address)
            for frames in ([b"garbage"], [encode(StatusRequest())], [encode(tokens(1)), b"more"], [encode(tokens(2))]):
                await raw.send_multipart(frames)
            assert await receiver.receive() == tokens(2)
    assert caplog.text.count("dropped") == 3


async def test_a_worker_with_a_wrong_secret_is_never_heard() -> None:
    lost: list[str] = []
    async with (
        TokenReceiver(LOCAL, b"right") as receiver,
        TokenSender(lost.append, b"wrong", connect_seconds=0.4) as sender,
    ):
        sender.send(receiver.address, tokens(0))
        pending = asyncio.ensure_future(receiver.receive())
        await until(lambda: receiver.address in lost)
        assert not pending.done()
        pending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await pending


async def test_a_public_bind_needs_a_secret() -> None:
    with pytest.raises(ConfigError, match="PACKHORSE_SECRET"):
        await TokenReceiver("tcp://0.0.0.0:0").start()
