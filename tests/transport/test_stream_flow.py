"""Credits and priorities: what may be under way, and whose frame goes next."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.transport.stream_fakes import LAYOUT, PAGE, JobBytes, KeepingSink, Wrapped, raw_receiver, streaming
from tests.waiting import PATIENCE_SECONDS, until
from transport.flow import Credits, FrameQueue, Outgoing, Turns
from transport.link import Frame, Link
from transport.messages import Credit, Model, Pages, Residual, StreamAck, StreamEnd, StreamOpen
from transport.streams import FRAME_BYTES, PageSender

pytestmark = pytest.mark.usefixtures("no_tasks")
both_links = pytest.mark.parametrize("scheme", ["inproc", "tcp"])


async def test_credits_count_what_is_under_way_and_measure_its_rate() -> None:
    now = 0.0
    credits = Credits(100, clock=lambda: now)
    credits.take(60)
    assert not credits.allow(41)
    assert credits.allow(40)
    now = 2.0
    credits.grant(60)
    now = 10.0  # idle
    assert (credits.under_way_bytes, credits.available_bytes, credits.delivered_bytes) == (0, 100, 60)
    assert credits.busy_seconds == 2.0
    assert credits.allow(1000)  # larger than the window, alone
    credits.take(1000)
    assert not credits.allow(1)
    now = 11.0
    credits.grant(1000)
    assert (credits.available_bytes, credits.busy_seconds) == (100, 3.0)


async def test_turns_go_by_priority_then_by_age() -> None:
    queues = {name: FrameQueue(priority, i) for i, (name, priority) in enumerate([("a", 0), ("b", 5), ("c", 5)])}
    turns = Turns()
    for queue in queues.values():
        queue.frames.append(Outgoing(StreamOpen(job_id="x")))
        turns.add(queue)
    order = []
    while (queue := turns.first()) is not None:
        queue.frames.popleft()
        order.append(queue)
    assert order == [queues["b"], queues["c"], queues["a"]]
    queues["a"].frames.append(Outgoing(StreamOpen(job_id="x")))
    turns.add(queues["a"])
    assert turns.first() is queues["a"]


@both_links
async def test_a_higher_priority_overtakes_at_a_frame_boundary(scheme: str) -> None:
    per_frame = FRAME_BYTES // PAGE
    low, high = JobBytes.make("low", num_pages=3 * per_frame), JobBytes.make("high", num_pages=2)
    async with raw_receiver(scheme, credit_bytes=FRAME_BYTES) as (sender, peer):
        shipping = [asyncio.create_task(low.ship(sender, priority=0))]
        opened, first = await peer.receive(), await peer.receive()
        assert [frame.message.job_id for frame in (opened, first)] == ["low", "low"]
        shipping.append(asyncio.create_task(high.ship(sender, priority=1)))
        await asyncio.sleep(0.05)
        order = await drain(peer, first)
        switch = order.index("low")
        assert set(order[:switch]) == {"high"}
        assert set(order[switch:]) == {"low"}
        assert order.count("high") == 1 + 2 * LAYOUT.layers + 1
        await asyncio.gather(*shipping)


async def drain(peer: Link, last: Frame) -> list[str]:
    """Consumes as a receiver does, until both jobs are acknowledged; returns whose frames came."""
    order, num_ended = [], 0
    while num_ended < 2:
        if len(last.payload):
            await peer.send(Credit(credit_bytes=len(last.payload)))
        last = await asyncio.wait_for(peer.receive(), PATIENCE_SECONDS)
        order.append(last.message.job_id)
        if isinstance(last.message, StreamEnd):
            num_ended += 1
            await peer.send(StreamAck(job_id=last.message.job_id, stream=last.message.stream))
    return order


@both_links
async def test_without_credit_the_sender_stops_at_the_window(scheme: str) -> None:
    job = JobBytes.make("job", num_pages=2, num_residual=4)  # 4096 and 1024 bytes
    async with raw_receiver(scheme, credit_bytes=6000) as (sender, peer):
        shipping = asyncio.create_task(job.ship(sender))
        for kind in (StreamOpen, Pages, Residual):
            assert isinstance((await peer.receive()).message, kind)
        blocked = asyncio.create_task(peer.receive())
        await asyncio.sleep(0.1)
        assert not blocked.done()
        await peer.send(Credit(credit_bytes=4096))
        assert isinstance((await asyncio.wait_for(blocked, PATIENCE_SECONDS)).message, Pages)
        shipping.cancel()
        await asyncio.gather(shipping, return_exceptions=True)


class Metered(Wrapped):
    """Counts the payload bytes that were sent and not yet granted back."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self.under_way = self.most = 0
        self.frames: list[int] = []

    async def send(self, message: Model, payload: bytes | bytearray | memoryview = b"") -> None:
        self.under_way += len(payload)
        self.most = max(self.most, self.under_way)
        if len(payload):
            self.frames.append(len(payload))
        await super().send(message, payload)

    async def receive(self) -> Frame:
        frame = await super().receive()
        if isinstance(frame.message, Credit):
            self.under_way -= frame.message.credit_bytes
        return frame


@both_links
async def test_a_slow_sink_holds_the_sender_to_its_credits(scheme: str) -> None:
    def slow(call: str, job_id: str) -> None:
        time.sleep(0.002)

    meters: list[Metered] = []

    def metered(link: Link) -> Link:
        meters.append(Metered(link))
        return meters[-1]

    sink, jobs = KeepingSink(slow), [JobBytes.make(f"job-{i}", num_pages=1 + i) for i in range(10)]
    async with streaming(scheme, sink, credit_bytes=30_000, wrap=metered) as (sender, _):
        await asyncio.gather(*(job.ship(sender) for job in jobs))
        assert all(sink.holds(job) for job in jobs)
        meter = meters[0]
        assert 20_000 < meter.most <= 30_000
        await until(lambda: meter.under_way == 0)


@both_links
async def test_a_frame_larger_than_the_window_goes_alone(scheme: str) -> None:
    meters: list[Metered] = []

    def metered(link: Link) -> Link:
        meters.append(Metered(link))
        return meters[-1]

    sink, job = KeepingSink(), JobBytes.make("job", num_pages=40)
    async with streaming(scheme, sink, credit_bytes=1000, wrap=metered) as (sender, _):
        await job.ship(sender)
        assert sink.holds(job)
        assert meters[0].most == max(meters[0].frames)


async def test_frames_hold_whole_pages_up_to_the_limit() -> None:
    meters: list[Metered] = []

    def metered(link: Link) -> Link:
        meters.append(Metered(link))
        return meters[-1]

    sink, job = KeepingSink(), JobBytes.make("job", num_pages=1200)
    async with streaming("inproc", sink, wrap=metered) as (sender, _):
        await job.ship(sender)
        sizes = [size for size in meters[0].frames if size > 5000]
        assert all(size % PAGE == 0 and size <= FRAME_BYTES for size in sizes)
        assert len(sizes) == LAYOUT.layers * -(-1200 * PAGE // FRAME_BYTES)


async def test_the_rate_of_the_newest_stream_is_reported() -> None:
    sink = KeepingSink()
    async with streaming("tcp", sink) as (sender, _):
        assert isinstance(sender, PageSender)
        assert sender.bytes_per_second == 0.0
        await JobBytes.make("job", num_pages=600).ship(sender)
        first = sender.bytes_per_second
        assert first > 0
        await until(lambda: not sender.credits.under_way_bytes)
        busy = sender.credits.busy_seconds
        await asyncio.sleep(0.05)
        assert sender.credits.busy_seconds == busy, "idle time does not count"
        await JobBytes.make("next", num_pages=600).ship(sender)
        assert sender.bytes_per_second not in (0.0, first)
