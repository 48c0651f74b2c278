"""Page streams end to end: what arrives, what fails and whom it takes along, and that nothing is left."""

from __future__ import annotations

import asyncio

import pytest

from packhorse.errors import (
    FrameError,
    JobCancelledError,
    LinkClosedError,
    LinkTimeoutError,
    OverloadedError,
    PackhorseError,
)
from tests.transport.stream_fakes import (
    PAGE,
    JobBytes,
    KeepingSink,
    Wrapped,
    abort_of,
    raw_receiver,
    raw_sender,
    streaming,
)
from tests.waiting import PATIENCE_SECONDS, until
from transport.link import Link
from transport.messages import ErrorInfo, Model, Pages, StreamAbort, StreamAck, StreamEnd, StreamOpen

both_links = pytest.mark.parametrize("scheme", ["inproc", "tcp"])
pytestmark = pytest.mark.usefixtures("no_tasks")


@pytest.mark.parametrize("scheme", ["inproc", "tcp", "zmq"])
async def test_a_job_arrives_whole_and_its_lease_ends(scheme: str) -> None:
    sink, job = KeepingSink(), JobBytes.make("job", num_pages=1200)
    async with streaming(scheme, sink) as (sender, _):
        stream = sender.open(job.job_id)
        job.put(stream)
        assert stream.pending_bytes == job.num_bytes
        await stream.finish(job.end(), PATIENCE_SECONDS)
        assert sink.holds(job)
        assert sink.calls[0] == ("opened", "job")
        assert sink.calls[-1] == ("ended", "job")
        assert (stream.pending_bytes, stream.bytes_sent, sender.bytes_sent) == (0, job.num_bytes, job.num_bytes)
        assert sender.bytes_per_second > 0
        assert not sender.closed


async def test_a_job_without_pages_arrives() -> None:
    sink, job = KeepingSink(), JobBytes.make("job", num_pages=0)
    async with streaming("inproc", sink) as (sender, _):
        await job.ship(sender)
        assert sink.holds(job)


@both_links
async def test_a_hundred_streams_at_once_over_few_credits(scheme: str) -> None:
    sink = KeepingSink()
    jobs = [JobBytes.make(f"job-{i}", num_pages=i % 7, num_residual=1 + i % 60) for i in range(100)]
    async with streaming(scheme, sink, credit_bytes=20_000) as (sender, _):
        await asyncio.gather(*(job.ship(sender, priority=i % 3) for i, job in enumerate(jobs)))
        assert all(sink.holds(job) for job in jobs)


@both_links
async def test_a_stream_name_can_be_used_again_after_its_end(scheme: str) -> None:
    sink, job = KeepingSink(), JobBytes.make("job")
    async with streaming(scheme, sink) as (sender, _):
        stream = sender.open("job")
        with pytest.raises(ValueError, match="job"):
            sender.open("job")
        job.put(stream)
        await until(lambda: "job" in sink.open)
        stream.abort(JobCancelledError("again"))
        await job.ship(sender)
        assert sink.holds(job)


@pytest.mark.parametrize(("pages", "residual"), [((0, 0, bytes(PAGE), 2), None), (None, (0, 3, bytes(7)))])
async def test_a_payload_of_the_wrong_size_is_the_callers_error(
    pages: tuple[int, int, bytes, int] | None, residual: tuple[int, int, bytes] | None
) -> None:
    async with streaming("inproc", KeepingSink()) as (sender, _):
        stream = sender.open("job")
        with pytest.raises(ValueError, match="bytes"):
            stream.put_pages(*pages) if pages else stream.put_residual(*residual or (0, 0, b""))


# ---- a failure takes its own job along, and no other


class Flip(Wrapped):
    """Flips one byte of every payload of one job."""

    def __init__(self, link: Link, job_id: str) -> None:
        super().__init__(link)
        self._job_id = job_id

    async def send(self, message: Model, payload: bytes | bytearray | memoryview = b"") -> None:
        if isinstance(message, Pages) and message.job_id == self._job_id:
            payload = bytearray(payload)
            payload[len(payload) // 2] ^= 1
        await super().send(message, payload)


@both_links
async def test_a_corrupt_payload_aborts_its_job_alone(scheme: str) -> None:
    sink, bad, good = KeepingSink(), JobBytes.make("bad"), JobBytes.make("good")
    async with streaming(scheme, sink, wrap=lambda link: Flip(link, "bad")) as (sender, _):
        results = await asyncio.gather(bad.ship(sender), good.ship(sender), return_exceptions=True)
        assert isinstance(results[0], FrameError)
        assert "checksum" in str(results[0])
        assert isinstance(sink.errors["bad"], FrameError)
        assert ("pages", "bad") not in sink.calls
        assert sink.holds(good)


@both_links
@pytest.mark.parametrize("call", ["opened", "pages", "residual", "ended"])
async def test_what_the_sink_raises_reaches_finish(scheme: str, call: str) -> None:
    def fail(now: str, job_id: str) -> None:
        if (now, job_id) == (call, "bad"):
            sink.open.pop("bad", None)
            raise OverloadedError("no room", param="prompt")

    sink, bad, good = KeepingSink(fail), JobBytes.make("bad"), JobBytes.make("good")
    async with streaming(scheme, sink, credit_bytes=5000) as (sender, _):
        stream = sender.open("bad", priority=1)
        bad.put(stream)
        shipping = asyncio.create_task(good.ship(sender))
        with pytest.raises(OverloadedError, match="no room") as caught:
            await stream.finish(bad.end(), PATIENCE_SECONDS)
        assert caught.value.param == "prompt"
        assert stream.pending_bytes == 0
        await shipping
        assert sink.holds(good)
        assert sink.calls.count((call, "bad")) == 1  # what was still under way was dropped


async def test_a_bug_in_the_sink_fails_the_job_and_not_the_link(caplog: pytest.LogCaptureFixture) -> None:
    def fail(now: str, job_id: str) -> None:
        if now == "pages" and job_id == "bad":
            del sink.open["bad"]
            raise ZeroDivisionError("a bug")

    sink, good = KeepingSink(fail), JobBytes.make("good")
    async with streaming("inproc", sink) as (sender, _):
        with pytest.raises(PackhorseError, match="internal error"):
            await JobBytes.make("bad").ship(sender)
        assert "a bug" in caplog.text
        await good.ship(sender)
        assert sink.holds(good)


# ---- aborts


@both_links
async def test_the_sender_gives_up(scheme: str) -> None:
    sink, job = KeepingSink(), JobBytes.make("job")
    async with streaming(scheme, sink) as (sender, _):
        stream = sender.open("job")
        job.put(stream)
        await until(lambda: "job" in sink.open)
        stream.abort(JobCancelledError("the client left"))
        stream.abort(JobCancelledError("twice"))
        await until(lambda: "job" in sink.errors)
        assert isinstance(sink.errors["job"], JobCancelledError)
        assert str(sink.errors["job"]) == "the client left"
        assert stream.pending_bytes == 0
        job.put(stream)  # late calls of an engine thread have no effect
        assert stream.pending_bytes == 0
        with pytest.raises(JobCancelledError):
            await stream.finish(job.end(), PATIENCE_SECONDS)


async def test_an_abort_before_anything_was_sent_says_nothing() -> None:
    sink = KeepingSink()
    async with streaming("inproc", sink) as (sender, _):
        sender.open("job").abort(JobCancelledError("at once"))
        await JobBytes.make("next").ship(sender)
        assert {job_id for _, job_id in sink.calls} == {"next"}


@both_links
async def test_the_receiver_gives_up(scheme: str) -> None:
    sink, job = KeepingSink(), JobBytes.make("job", num_pages=20)
    async with streaming(scheme, sink) as (sender, receiver):
        stream = sender.open("job")
        job.put(stream)
        await until(lambda: ("pages", "job") in sink.calls)
        receiver.abort("job", JobCancelledError("released"))
        sink.open.clear()
        with pytest.raises(JobCancelledError, match="released"):
            await stream.finish(job.end(), PATIENCE_SECONDS)
        assert sink.errors == {}
        await job.ship(sender)
        assert sink.holds(job)


@both_links
async def test_a_cancelled_finish_gives_up(scheme: str) -> None:
    async with raw_receiver(scheme, credit_bytes=1) as (sender, peer):
        job = JobBytes.make("job")
        shipping = asyncio.create_task(job.ship(sender))
        assert isinstance((await peer.receive()).message, StreamOpen)
        shipping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await shipping
        assert (await abort_of(peer, "job")).code == "cancelled"


@both_links
async def test_finish_has_a_timeout_and_then_gives_up(scheme: str) -> None:
    async with raw_receiver(scheme) as (sender, peer):
        with pytest.raises(LinkTimeoutError, match=r"acknowledge job job within 0\.2 s"):
            await JobBytes.make("job").ship(sender, timeout_seconds=0.2)
        assert (await abort_of(peer, "job")).code == "link_timeout"
        assert not sender.closed


# ---- the link is lost


@both_links
@pytest.mark.parametrize("side", ["sender", "receiver", "link"])
async def test_a_lost_link_fails_every_stream_on_both_sides(scheme: str, side: str) -> None:
    sink, jobs = KeepingSink(), [JobBytes.make(f"job-{i}") for i in range(3)]
    links: list[Link] = []
    async with streaming(scheme, sink, wrap=lambda link: (links.append(link), link)[1]) as (sender, receiver):
        streams = [sender.open(job.job_id) for job in jobs]
        for job, stream in zip(jobs, streams, strict=True):
            job.put(stream)
        await until(lambda: len(sink.open) == 3)
        await {"sender": sender, "receiver": receiver, "link": links[0]}[side].close()
        await until(lambda: sender.closed)
        for job, stream in zip(jobs, streams, strict=True):
            with pytest.raises(LinkClosedError):
                await stream.finish(job.end(), PATIENCE_SECONDS)
            assert stream.pending_bytes == 0
        await until(lambda: len(sink.errors) == 3)
        assert all(isinstance(error, LinkClosedError) for error in sink.errors.values())
        with pytest.raises(LinkClosedError):
            sender.open("late")


@both_links
async def test_a_pending_finish_hears_of_a_lost_link(scheme: str) -> None:
    async with raw_receiver(scheme) as (sender, peer):
        shipping = asyncio.create_task(JobBytes.make("job").ship(sender))
        await peer.receive()
        await peer.close()
        with pytest.raises(LinkClosedError):
            await asyncio.wait_for(shipping, PATIENCE_SECONDS)


@both_links
async def test_a_link_lost_while_waiting_for_credit(scheme: str) -> None:
    async with raw_receiver(scheme, credit_bytes=PAGE) as (sender, peer):
        shipping = asyncio.create_task(JobBytes.make("job", num_pages=600).ship(sender))
        await peer.receive()
        await peer.close()
        with pytest.raises(LinkClosedError):
            await asyncio.wait_for(shipping, PATIENCE_SECONDS)


# ---- a peer that breaks the rules


@both_links
async def test_frames_of_a_stream_that_was_never_opened_are_refused(scheme: str) -> None:
    sink = KeepingSink()
    async with raw_sender(scheme, sink) as link:
        await link.send(Pages(job_id="ghost", layer=0, first_page=0, num_pages=1, checksum=0), bytes(PAGE))
        assert "never opened" in (await abort_of(link, "ghost")).message
        assert sink.calls == []


@both_links
@pytest.mark.parametrize(("layer", "num_pages", "size"), [(3, 1, PAGE), (-1, 1, PAGE), (0, 2, PAGE), (0, 0, 0)])
async def test_frames_that_do_not_fit_the_layout_are_refused(
    scheme: str, layer: int, num_pages: int, size: int
) -> None:
    sink = KeepingSink()
    async with raw_sender(scheme, sink) as link:
        await link.send(StreamOpen(job_id="job"))
        await link.send(Pages(job_id="job", layer=layer, first_page=0, num_pages=num_pages, checksum=0), bytes(size))
        assert (await abort_of(link, "job")).code == "bad_frame"
        assert sink.calls == [("opened", "job"), ("aborted", "job")]


async def test_opening_a_stream_twice_ends_it() -> None:
    sink = KeepingSink()
    async with raw_sender("inproc", sink) as link:
        for _ in range(2):
            await link.send(StreamOpen(job_id="job"))
        assert (await abort_of(link, "job")).code == "bad_frame"
        assert sink.calls == [("opened", "job"), ("aborted", "job")]


async def test_an_acknowledgement_too_early_breaks_the_link() -> None:
    async with raw_receiver("inproc") as (sender, peer):
        stream = sender.open("job")
        await peer.receive()
        await peer.send(StreamAck(job_id="job", stream=stream.number))
        await until(lambda: sender.closed)
        with pytest.raises(LinkClosedError, match="before its end"):
            await stream.finish(JobBytes.make("job").end(), PATIENCE_SECONDS)


async def test_word_of_a_jobs_last_stream_does_not_touch_its_next() -> None:
    async with raw_receiver("inproc") as (sender, peer):
        first = sender.open("job")
        await peer.receive()
        first.abort(JobCancelledError("the job starts anew"))
        second = sender.open("job")
        for late in (StreamAck, StreamAbort):
            error = {"error": ErrorInfo(code="bad_frame", message="late")} if late is StreamAbort else {}
            await peer.send(late(job_id="job", stream=first.number, **error))
        finishing = asyncio.create_task(second.finish(JobBytes.make("job").end(), PATIENCE_SECONDS))
        while not isinstance((await peer.receive()).message, StreamEnd):
            pass
        await peer.send(StreamAck(job_id="job", stream=second.number))
        await finishing
        assert second.error is None


async def test_frames_of_a_stream_that_was_given_up_do_not_reach_the_jobs_next() -> None:
    sink = KeepingSink()
    async with raw_sender("inproc", sink) as link:
        await link.send(StreamOpen(job_id="job", stream=1))
        await link.send(Pages(job_id="job", stream=1, layer=9, first_page=0, num_pages=1, checksum=0), bytes(PAGE))
        assert (await abort_of(link, "job")).code == "bad_frame"
        await link.send(StreamOpen(job_id="job", stream=2))
        late = Pages(job_id="job", stream=1, layer=0, first_page=0, num_pages=1, checksum=0)
        await link.send(late, bytes(PAGE))
        await link.send(StreamAbort(job_id="job", stream=1, error=ErrorInfo(code="cancelled", message="late")))
        await until(lambda: len(sink.calls) == 3)
        await asyncio.sleep(0.05)
        assert sink.calls == [("opened", "job"), ("aborted", "job"), ("opened", "job")]
        await link.send(Pages(job_id="job", stream=3, layer=0, first_page=0, num_pages=1, checksum=0), bytes(PAGE))
        assert "never opened" in (await abort_of(link, "job")).message


async def test_a_message_of_another_plane_breaks_the_link() -> None:
    sink = KeepingSink()
    async with raw_sender("inproc", sink) as link:
        await link.send(StreamOpen(job_id="job"))
        await link.send(StreamAck(job_id="job"))
        with pytest.raises(LinkClosedError):
            await asyncio.wait_for(link.receive(), PATIENCE_SECONDS)
        assert isinstance(sink.errors["job"], LinkClosedError)
