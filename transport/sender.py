"""The prefill side of page streams: many jobs' streams over one link, by priority, within the receiver's credits.

A stream's payloads stay referenced (the lease) until the receiver acknowledged them, either side aborted, or the link was
lost. Everything here runs on the event loop's thread. This file knows nothing of models or of how pages are made.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

import xxhash

from packhorse.errors import (
    FrameError,
    HandshakeError,
    JobCancelledError,
    LinkClosedError,
    LinkTimeoutError,
    PackhorseError,
)

from .connect import connect
from .flow import Credits, FrameQueue, Outgoing, Turns
from .framing import Payload, flat
from .handshake import greet
from .link import Link
from .messages import (
    Credit,
    ErrorInfo,
    KVLayout,
    Model,
    Pages,
    Refused,
    Residual,
    StreamAbort,
    StreamAck,
    StreamEnd,
    StreamOpen,
)
from .payload_sizes import page_layer_bytes, residual_bytes

log = logging.getLogger(__name__)

FRAME_BYTES = 1024 * 1024  # a frame has as many of a layer's pages as fit, and one at least


class PageSender:
    """One link to a decode worker. Make it with `connect`; `close` fails what is still under way."""

    def __init__(self, link: Link, layout: KVLayout, credit_bytes: int, peer_id: str) -> None:
        self.address = link.address
        self.peer_id = peer_id
        self.layout = layout
        self.bytes_sent = 0
        self.bytes_per_second = 0.0  # of the newest stream that was acknowledged; 0 before the first
        self.credits = Credits(credit_bytes)
        self._link = link
        self._error: PackhorseError | None = None
        self._num_opened = 0
        self._streams: dict[str, SendStream] = {}
        self._turns = Turns()
        self._aborts: deque[StreamAbort] = deque()
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"page sender {link.address}")

    @classmethod
    async def connect(
        cls,
        address: str,
        worker_id: str,
        layout: KVLayout,
        secret: bytes | None = None,
        timeout_seconds: float = 10,
    ) -> PageSender:
        """Connects and shakes hands. Raises HandshakeError naming what differs, LinkTimeoutError, LinkClosedError, ConfigError."""
        link = await connect(address, timeout_seconds=timeout_seconds, secret=secret)
        try:
            welcome = await greet(link, worker_id, layout, secret, timeout_seconds)
        except BaseException:
            await link.close()
            raise
        return cls(link, layout, welcome.credit_bytes, welcome.worker_id)

    @property
    def closed(self) -> bool:
        """Whether the link is lost or was closed: it takes no more streams."""
        return self._error is not None

    def open(self, job_id: str, priority: int = 0) -> SendStream:
        """A new stream for `job_id`. Raises the link's error once `closed`; ValueError while the job has a stream here."""
        if self._error is not None:
            raise self._error
        if job_id in self._streams:
            raise ValueError(f"job {job_id} has a stream to {self.address} already")
        self._num_opened += 1
        stream = self._streams[job_id] = SendStream(self, job_id, priority, self._num_opened)
        return stream

    async def close(self) -> None:
        """Idempotent; open streams fail with LinkClosedError."""
        self._fail(LinkClosedError(f"the page link to {self.address} was closed here"))
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._link.close()

    def queue(self, stream: SendStream) -> None:
        self._turns.add(stream.outbox)
        self._wake.set()

    def forget(self, stream: SendStream, error: PackhorseError | None) -> None:
        """`stream` has ended. With an error that the peer does not know yet, the peer is told."""
        if self._streams.get(stream.job_id) is stream:
            del self._streams[stream.job_id]
        if error is not None:
            self._aborts.append(StreamAbort(job_id=stream.job_id, error=ErrorInfo.of(error)))
            self._wake.set()

    async def _run(self) -> None:
        """Sends and receives until the link is lost, then fails every stream and closes the link."""
        error: PackhorseError = LinkClosedError(f"the page link to {self.address} ended")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send_frames(), name=f"send pages {self.address}")
                group.create_task(self._receive(), name=f"receive acknowledgements {self.address}")
        except* PackhorseError as group_error:
            error = _first(group_error)
            log.warning("the page link to %s is lost: %s", self.address, error)
        finally:
            if not isinstance(error, LinkClosedError | HandshakeError):
                error = LinkClosedError(f"the page link to {self.address} was lost: {error.message}")
            self._fail(error)
            await self._link.close()

    def _fail(self, error: PackhorseError) -> None:
        if self._error is None:
            self._error = error
        for stream in list(self._streams.values()):
            stream.end(error, tell=False)

    async def _send_frames(self) -> None:
        while True:
            while self._aborts:
                await self._link.send(self._aborts.popleft())
            queue = self._turns.first()
            if queue is not None and self.credits.allow(len(queue.frames[0].payload)):
                await self._send(queue.frames.popleft())
                await asyncio.sleep(0)  # a link that takes more at once never waits by itself
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _send(self, frame: Outgoing) -> None:
        num_bytes = len(frame.payload)
        self.credits.take(num_bytes)
        message = frame.message
        if isinstance(message, Pages | Residual):
            message = message.model_copy(update={"checksum": xxhash.xxh3_64_intdigest(frame.payload)})
            stream = self._streams.get(message.job_id)
            if stream is not None:
                stream.started(num_bytes)
        elif isinstance(message, StreamOpen):
            self._streams[message.job_id].announced = True
        self.bytes_sent += num_bytes
        await self._link.send(message, frame.payload)

    async def _receive(self) -> None:
        while True:
            message = (await self._link.receive()).message
            if isinstance(message, Credit):
                self.credits.grant(message.credit_bytes)
                self._wake.set()
            elif isinstance(message, StreamAck):
                self._acknowledged(message.job_id)
            elif isinstance(message, StreamAbort):
                stream = self._streams.get(message.job_id)
                if stream is not None:
                    stream.end(message.error.error(), tell=False)
            elif isinstance(message, Refused):
                raise HandshakeError(f"{self.address} refused the link: {message.error.message}")
            else:
                raise FrameError(f"{self.address} sent {type(message).__name__}, which a decode worker does not send")

    def _acknowledged(self, job_id: str) -> None:
        stream = self._streams.get(job_id)
        if stream is None:
            return
        if not stream.all_sent:
            raise FrameError(f"{self.address} acknowledged job {job_id} before its end was sent")
        self.bytes_per_second = stream.bytes_per_second() or self.bytes_per_second
        stream.end(None, tell=False)


class SendStream:
    """One job's pages and residuals, on their way. Made by `PageSender.open`; ended by `finish` or `abort`."""

    def __init__(self, sender: PageSender, job_id: str, priority: int, sequence: int) -> None:
        self.job_id = job_id
        self.outbox = FrameQueue(priority, sequence)
        self.error: PackhorseError | None = None
        self.announced = False  # its StreamOpen has been sent
        self.bytes_sent = 0
        self.pending_bytes = 0  # queued or not yet acknowledged: the lease
        self._sender = sender
        self._leased: list[memoryview] = []
        self._finishing = False
        self._ended = asyncio.Event()
        self._start: tuple[int, float] | None = None  # (delivered bytes, busy seconds) of the link at the first payload
        self._put(StreamOpen(job_id=job_id, priority=priority))

    @property
    def all_sent(self) -> bool:
        return self._finishing and not self.outbox.frames

    def put_pages(self, layer: int, first_page: int, payload: Payload, num_pages: int) -> None:
        """Queues pages of one layer: uint8 [num_pages, kv_heads, page_bytes], contiguous, and not written to until the end.

        Without effect once the stream has failed (`error` says so). Raises ValueError when the size does not fit the layout.
        """
        view, page = flat(payload), page_layer_bytes(self._sender.layout)
        if num_pages < 1 or len(view) != num_pages * page:
            raise ValueError(f"{num_pages} pages of layer {layer} have {num_pages * page} bytes, not {len(view)}")
        per_frame = max(1, FRAME_BYTES // page)
        for start in range(0, num_pages, per_frame):
            count = min(per_frame, num_pages - start)
            self._put(
                Pages(job_id=self.job_id, layer=layer, first_page=first_page + start, num_pages=count, checksum=0),
                view[start * page : (start + count) * page],
            )

    def put_residual(self, layer: int, num_tokens: int, payload: Payload) -> None:
        """Queues one layer's residual, [2, kv_heads, num_tokens, head_dim] of the layout's dtype; else as `put_pages`."""
        view, expected = flat(payload), residual_bytes(self._sender.layout, num_tokens)
        if num_tokens < 1 or len(view) != expected:
            raise ValueError(f"{num_tokens} residual tokens of layer {layer} have {expected} bytes, not {len(view)}")
        self._put(Residual(job_id=self.job_id, layer=layer, num_tokens=num_tokens, checksum=0), view)

    async def finish(self, end: StreamEnd, timeout_seconds: float) -> None:
        """Sends `end` and waits for the acknowledgement. Raises the peer's or the link's error; LinkTimeoutError aborts the stream.

        A cancelled finish aborts it too.
        """
        if end.job_id != self.job_id:
            raise ValueError(f"the end of job {end.job_id} does not belong to job {self.job_id}")
        self._put(end)
        self._finishing = True
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._ended.wait()
        except TimeoutError:
            address = self._sender.address
            self.abort(
                LinkTimeoutError(f"{address} did not acknowledge job {self.job_id} within {timeout_seconds:g} s")
            )
        except asyncio.CancelledError:
            self.abort(JobCancelledError(f"job {self.job_id} was cancelled"))
            raise
        if self.error is not None:
            raise self.error

    def abort(self, error: PackhorseError) -> None:
        """Gives the stream up and tells the peer why. Without effect once it has ended."""
        self.end(error, tell=self.announced)

    def end(self, error: PackhorseError | None, *, tell: bool) -> None:
        """Releases the lease and wakes `finish`; for the sender. `error` None: acknowledged."""
        if self._ended.is_set():
            return
        self.error = error
        self.outbox.frames.clear()
        self._leased.clear()
        self.pending_bytes = 0
        self._ended.set()
        self._sender.forget(self, error if tell else None)

    def started(self, num_bytes: int) -> None:
        """A payload leaves; for the sender."""
        if self._start is None:
            credits = self._sender.credits
            self._start = credits.delivered_bytes, credits.busy_seconds
        self.bytes_sent += num_bytes

    def bytes_per_second(self) -> float:
        """The link's rate of delivery since this stream's first payload, not counting when it had nothing to do."""
        if self._start is None:
            return 0.0
        credits = self._sender.credits
        seconds = credits.busy_seconds - self._start[1]
        return (credits.delivered_bytes - self._start[0]) / seconds if seconds > 0 else 0.0

    def _put(self, message: Model, payload: memoryview | None = None) -> None:
        if self._ended.is_set():
            return
        if self._finishing:
            raise ValueError(f"job {self.job_id}: nothing can follow the end of a stream")
        frame = Outgoing(message) if payload is None else Outgoing(message, payload)
        self._leased.append(frame.payload)
        self.pending_bytes += len(frame.payload)
        self.outbox.frames.append(frame)
        self._sender.queue(self)


def _first(group: BaseExceptionGroup[PackhorseError]) -> PackhorseError:
    leaf: BaseException = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    assert isinstance(leaf, PackhorseError)
    return leaf
