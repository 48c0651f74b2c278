"""A peer that is killed, or freezes, without a word: the other side hears of it in bounded time, whichever side it is on."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from packhorse.errors import LinkClosedError
from tests.waiting import PATIENCE_SECONDS
from transport import zmq_link
from transport.connect import connect, listen
from transport.link import Link, Listener
from transport.messages import Credit

HAS_UCX = importlib.util.find_spec("ucxx") is not None
UCX = pytest.param(
    "ucx", marks=[pytest.mark.ucx, pytest.mark.skipif(not HAS_UCX, reason="the package ucxx is not installed")]
)
network_link = pytest.mark.parametrize("scheme", ["tcp", "zmq", UCX])
pytestmark = pytest.mark.usefixtures("no_tasks")
LIMIT_SECONDS = 10.0  # probes go each second; the rest is for a machine that stands still meanwhile
ROOT = Path(__file__).parents[2]

# Connects to argv[1], or listens and prints where; then says hello on its link, and does nothing more.
CHILD = """
import asyncio, sys
from transport.connect import connect, listen
from transport.messages import Credit

async def main():
    if sys.argv[1] == "connect":
        link = await connect(sys.argv[2])
    else:
        listener = await listen(sys.argv[2])
        print(listener.address, flush=True)
        link = await listener.accept()
    await link.send(Credit(credit_bytes=7))
    await asyncio.sleep(60)

asyncio.run(main())
"""


@asynccontextmanager
async def child(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, *arguments, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def first_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), PATIENCE_SECONDS)).decode().strip()


@asynccontextmanager
async def link_to_child(
    scheme: str, child_role: str
) -> AsyncIterator[tuple[Link, asyncio.subprocess.Process, Listener | None]]:
    listener = await listen(f"{scheme}://127.0.0.1:0") if child_role == "connect" else None
    address = listener.address if listener else f"{scheme}://127.0.0.1:0"
    async with child(child_role, address) as process:
        if listener:
            link = await asyncio.wait_for(listener.accept(), PATIENCE_SECONDS)
        else:
            link = await connect(await first_line(process))
        assert (await asyncio.wait_for(link.receive(), PATIENCE_SECONDS)).message == Credit(credit_bytes=7)
        try:
            yield link, process, listener
        finally:
            await link.close()
            if listener:
                await listener.close()


@network_link
@pytest.mark.parametrize("child_role", ["connect", "listen"])
async def test_a_killed_peer_ends_a_pending_receive(scheme: str, child_role: str) -> None:
    async with link_to_child(scheme, child_role) as (link, process, _):
        waiting = asyncio.create_task(link.receive())
        await asyncio.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(LinkClosedError):
            await asyncio.wait_for(waiting, LIMIT_SECONDS)
        with pytest.raises(LinkClosedError):
            await asyncio.wait_for(send_forever(link), LIMIT_SECONDS)


@network_link
@pytest.mark.parametrize("child_role", ["connect", "listen"])
async def test_a_peer_killed_amid_a_large_send_ends_the_send(scheme: str, child_role: str) -> None:
    async with link_to_child(scheme, child_role) as (link, process, _):
        sending = asyncio.create_task(send_forever(link))
        await asyncio.sleep(0.3)  # the child reads nothing: the send is stuck by now
        assert not sending.done()
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(LinkClosedError):
            await asyncio.wait_for(sending, LIMIT_SECONDS)


@pytest.mark.parametrize("child_role", ["connect", "listen"])
async def test_a_frozen_peer_is_noticed_by_zmq_heartbeats(child_role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq_link, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(zmq_link, "PEER_TIMEOUT_SECONDS", 3.0)  # so long the child may be busy
    async with link_to_child("zmq", child_role) as (link, process, _):
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(LinkClosedError):
            await asyncio.wait_for(link.receive(), LIMIT_SECONDS)


@network_link
async def test_a_listener_serves_others_after_a_peer_was_killed(scheme: str) -> None:
    async with link_to_child(scheme, "connect") as (_, process, listener):
        assert listener is not None
        os.kill(process.pid, signal.SIGKILL)
        here = await connect(listener.address, timeout_seconds=PATIENCE_SECONDS)
        there = await asyncio.wait_for(listener.accept(), PATIENCE_SECONDS)
        await here.send(Credit(credit_bytes=1))
        assert (await asyncio.wait_for(there.receive(), PATIENCE_SECONDS)).message == Credit(credit_bytes=1)
        await asyncio.gather(here.close(), there.close())


async def send_forever(link: Link) -> None:
    while True:
        await link.send(Credit(credit_bytes=1), bytes(4 * 1024 * 1024))
