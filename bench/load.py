"""The open-loop load: sends each request at its time, whether or not earlier ones are done.

An optional limit on requests in flight makes late ones wait here; that wait counts, as times run from the scheduled arrival.
This file knows nothing of HTTP or statistics: it is given a function that sends one request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

from bench.record import RequestRecord
from bench.workload import PlannedRequest

Send = Callable[[PlannedRequest, RequestRecord], Awaitable[None]]


async def run_load(
    plan: Sequence[PlannedRequest],
    arrivals: Sequence[float],
    send: Send,
    now: Callable[[], float],
    *,
    concurrency: int | None = None,
    stop: asyncio.Event | None = None,
    done: Callable[[RequestRecord], None] = lambda record: None,
) -> list[RequestRecord]:
    """One record per request that was due. When `stop` is set, the requests in flight are cancelled ("interrupted").

    arrivals: seconds on the clock `now`, ascending or not, one per request. `done` hears of every request that ended.
    """
    stop = stop or asyncio.Event()
    slots = asyncio.Semaphore(concurrency) if concurrency else None
    records: list[RequestRecord] = []
    tasks: list[asyncio.Task[None]] = []

    async def run_one(request: PlannedRequest, record: RequestRecord) -> None:
        async with AsyncExitStack() as stack:
            if slots:
                await stack.enter_async_context(slots)
            await send(request, record)
        done(record)

    try:
        for index in sorted(range(len(plan)), key=arrivals.__getitem__):
            if await _stopped_before(stop, arrivals[index] - now()):
                break
            record = RequestRecord(index, arrivals[index], plan[index].max_tokens)
            records.append(record)
            tasks.append(asyncio.create_task(run_one(plan[index], record)))
        await _finish(tasks, stop)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()):
            raise error
    return records


async def _stopped_before(stop: asyncio.Event, seconds: float) -> bool:
    """True as soon as `stop` is set, False after `seconds`."""
    if seconds <= 0:
        await asyncio.sleep(0)
        return stop.is_set()
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True


async def _finish(tasks: list[asyncio.Task[None]], stop: asyncio.Event) -> None:
    """Waits until all tasks end or `stop` is set."""
    if not tasks:
        return
    stopped = asyncio.create_task(stop.wait())
    everything = asyncio.ensure_future(asyncio.wait(tasks))
    try:
        await asyncio.wait([stopped, everything], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        everything.cancel()
        await asyncio.gather(stopped, everything, return_exceptions=True)
