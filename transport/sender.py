"""The prefill side of page streams: many jobs' streams over one link, by priority, within the receiver's credits.

Everything here runs on the event loop's thread. This file knows nothing of models or of how pages are made.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

import xxhash

from packhorse.errors import (
    FrameError,
    HandshakeError,
    LinkClosedError,
    PackhorseError,
)

from .connect import connect
from .flow import Credits, Outgoing, Turns
from .handshake import greet
from .link import Link
from .messages import (
    Credit,
    ErrorInfo,
    KVLayout,
    Pages,
    Refused,
    Residual,
    StreamAbort,
    StreamAck,
    StreamOpen,
)
from .send_stream import SendStream

log = logging.getLogger(__name__)


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
        log.info("pages for %s go over %s", welcome.worker_id, address)
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
            self._aborts.append(StreamAbort(job_id=stream.job_id, stream=stream.number, error=ErrorInfo.of(error)))
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
            quiet = not self._streams and isinstance(error, LinkClosedError)
            log.log(logging.INFO if quiet else logging.WARNING, "the page link to %s is lost: %s", self.address, error)
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
                self._granted(message.credit_bytes)
            elif isinstance(message, StreamAck):
                self._acknowledged(message)
            elif isinstance(message, StreamAbort):
                stream = self._stream(message)
                if stream is not None:
                    stream.end(message.error.error(), tell=False)
            elif isinstance(message, Refused):
                raise HandshakeError(f"{self.address} refused the link: {message.error.message}")
            else:
                raise FrameError(f"{self.address} sent {type(message).__name__}, which a decode worker does not send")

    def _granted(self, credit_bytes: int) -> None:
        if credit_bytes < 1:
            raise FrameError(f"{self.address} granted {credit_bytes} bytes of credit")
        self.credits.grant(credit_bytes)
        self._wake.set()

    def _stream(self, message: StreamAck | StreamAbort) -> SendStream | None:
        """The stream that is meant; None for one that has ended, though the job may have another by now."""
        stream = self._streams.get(message.job_id)
        return stream if stream is not None and stream.number == message.stream else None

    def _acknowledged(self, message: StreamAck) -> None:
        stream = self._stream(message)
        if stream is None:
            return
        if not stream.all_sent:
            raise FrameError(f"{self.address} acknowledged job {message.job_id} before its end was sent")
        self.bytes_per_second = stream.bytes_per_second() or self.bytes_per_second
        stream.end(None, tell=False)
        log.debug(
            "shipped job %s to %s: %d bytes, %.0f bytes/s",
            message.job_id,
            self.address,
            stream.bytes_sent,
            self.bytes_per_second,
        )


def _first(group: BaseExceptionGroup[PackhorseError]) -> PackhorseError:
    leaf: BaseException = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    assert isinstance(leaf, PackhorseError)
    return leaf
