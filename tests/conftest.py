"""What every test must leave behind: nothing. Sockets, event-loop tasks and child processes are counted."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
import zmq


@pytest.fixture(autouse=True)
def no_open_sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that leaves a ZeroMQ socket open."""
    opened: list[zmq.Socket] = []
    create = zmq.Context.socket

    def remember(context: zmq.Context, *args: object, **kwargs: object) -> zmq.Socket:
        socket = create(context, *args, **kwargs)
        opened.append(socket)
        return socket

    monkeypatch.setattr(zmq.Context, "socket", remember)
    yield
    left = [socket for socket in opened if not socket.closed]
    for socket in left:
        socket.close(linger=0)
    assert not left, f"{len(left)} of {len(opened)} ZeroMQ sockets were left open: {left}"


@pytest.fixture(autouse=True)
def no_children() -> Iterator[None]:
    """Fails a test that leaves a multiprocessing child alive."""
    yield
    assert multiprocessing.active_children() == []


@pytest_asyncio.fixture
async def no_tasks() -> AsyncIterator[None]:
    """Asked for by name (`usefixtures`): fails a test that leaves asyncio tasks running."""
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() - before - {asyncio.current_task()} if not task.done()]
    assert not left, f"tasks left running: {left}"
