"""What the UCX link alone promises: a clear error without its package, and nothing kept once its links are closed."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import sys

import pytest

from packhorse.errors import ConfigError, LinkClosedError
from tests.waiting import PATIENCE_SECONDS
from transport.connect import connect, listen
from transport.messages import Credit
from transport.ucx_engine import _engines

pytestmark = pytest.mark.usefixtures("no_tasks")
needs_ucx = pytest.mark.skipif(importlib.util.find_spec("ucxx") is None, reason="the package ucxx is not installed")


async def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ucxx", None)
    for make in (connect, listen):
        with pytest.raises(ConfigError, match=r"packhorse\[ucx\]"):
            await make("ucx://127.0.0.1:0")
    assert _engines == {}


@pytest.mark.ucx
@needs_ucx
async def test_nothing_is_kept_after_the_last_link() -> None:
    await exchange()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await exchange()
    gc.collect()
    assert _engines == {}
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.ucx
@needs_ucx
async def test_closing_here_ends_a_transfer_under_way() -> None:
    listener = await listen("ucx://127.0.0.1:0")
    here, there = await asyncio.gather(connect(listener.address), listener.accept())
    sending = asyncio.create_task(here.send(Credit(credit_bytes=1), bytes(16 * 1024 * 1024)))
    await asyncio.sleep(0.1)
    assert not sending.done()
    await here.close()
    with pytest.raises(LinkClosedError):
        await asyncio.wait_for(sending, PATIENCE_SECONDS)
    await there.close()
    await listener.close()


@pytest.mark.ucx
@needs_ucx
async def test_a_peer_that_speaks_another_protocol_keeps_nobody_out() -> None:
    listener = await listen("ucx://127.0.0.1:0")
    host, port = listener.address.removeprefix("ucx://").split(":")
    _, silent = await asyncio.open_connection(host, int(port))
    _, rude = await asyncio.open_connection(host, int(port))
    rude.write(b"GET / HTTP/1.1\r\n\r\n")
    here, there = await asyncio.wait_for(asyncio.gather(connect(listener.address), listener.accept()), PATIENCE_SECONDS)
    await asyncio.gather(here.close(), there.close())
    await listener.close()
    for writer in (silent, rude):
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def exchange() -> None:
    listener = await listen("ucx://127.0.0.1:0")
    here, there = await asyncio.gather(connect(listener.address), listener.accept())
    sending = asyncio.create_task(here.send(Credit(credit_bytes=1), bytes(100_000)))
    assert len((await there.receive()).payload) == 100_000
    await sending
    await asyncio.gather(here.close(), there.close())
    await listener.close()
