"""One link on the decode side of page streams: checks every frame, hands it to the sink, answers and grants credits.

Everything here runs on the event loop's thread. This file knows nothing of pools or of what the sink does with pages.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from typing import Any, Protocol

import xxhash

from packhorse.errors import FrameError, HandshakeError, LinkClosedError, PackhorseError, TransportError

from .link import Frame, Link
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
from .payload_sizes import expected_bytes

log = logging.getLogger(__name__)

_MAX_REMEMBERED = 4096  # ended streams whose frames may still be under way


class PageSink(Protocol):
    """Takes the streams in. A PackhorseError that it raises aborts the job's stream at the sender; the sink hears no more of it."""

    def opened(self, message: StreamOpen) -> None: ...

    def pages(self, message: Pages, payload: memoryview) -> None:
        """`payload` has the size that the layout asks for and a right checksum; it is valid during the call alone."""

    def residual(self, message: Residual, payload: memoryview) -> None: ...

    def ended(self, message: StreamEnd) -> None:
        """Returning acknowledges the stream."""

    def aborted(self, job_id: str, error: PackhorseError) -> None:
        """The sender gave the stream up, a frame was corrupt, or the link is lost."""


class PageLink:
    """A link that has shaken hands, and its open streams."""

    def __init__(self, link: Link, worker_id: str, layout: KVLayout, sink: PageSink, peers: set[PageLink]) -> None:
        self.streams: dict[str, int] = {}  # the open ones: number by job
        self._name = f"{worker_id} at {link.address}"
        self._link = link
        self._layout = layout
        self._sink = sink
        self._peers = peers
        self._dropped: OrderedDict[str, int] = (
            OrderedDict()
        )  # streams given up: of these and older ones nothing is taken
        self._replies: deque[Model] = deque()
        self._credit_bytes = 0  # consumed and not yet granted
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Until the link is lost; then the sink has heard so for every open stream."""
        self._peers.add(self)
        error: PackhorseError = LinkClosedError(f"the page link of {self._name} was closed here")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send_replies(), name=f"reply {self._name}")
                group.create_task(self._receive(), name=f"receive pages {self._name}")
        except* TransportError as failures:
            error = LinkClosedError(f"the page link of {self._name} is lost: {_first(failures)}")
            quiet = not self.streams and failures.subgroup(LinkClosedError) is not None
            log.log(logging.INFO if quiet else logging.WARNING, "%s", error)
        finally:
            self._peers.discard(self)
            for job_id in list(self.streams):
                self._end_badly(job_id, error)

    def abort(self, job_id: str, error: PackhorseError) -> None:
        """Ends the job's stream, which is open, and tells the sender; what of it is still under way will be dropped."""
        self._drop(job_id, self.streams[job_id], error)

    def _drop(self, job_id: str, number: int, error: PackhorseError) -> None:
        self.streams.pop(job_id, None)
        self._dropped[job_id] = number
        self._dropped.move_to_end(job_id)
        if len(self._dropped) > _MAX_REMEMBERED:
            self._dropped.popitem(last=False)
        self._reply(StreamAbort(job_id=job_id, stream=number, error=ErrorInfo.of(error)))

    async def _send_replies(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._replies or self._credit_bytes:
                if self._credit_bytes:
                    self._replies.append(Credit(credit_bytes=self._credit_bytes))
                    self._credit_bytes = 0
                await self._link.send(self._replies.popleft())

    def _reply(self, message: Model) -> None:
        self._replies.append(message)
        self._wake.set()

    async def _receive(self) -> None:
        while True:
            frame = await self._link.receive()
            self._take(frame)
            if len(frame.payload):
                self._credit_bytes += len(frame.payload)
                self._wake.set()
                await asyncio.sleep(0)  # a link that has more at once never waits by itself

    def _take(self, frame: Frame) -> None:
        message = frame.message
        if isinstance(message, Refused):  # a listening side without a secret hears of the peer's here
            raise HandshakeError(message.error.message)
        if not isinstance(message, StreamOpen | Pages | Residual | StreamEnd | StreamAbort):
            raise FrameError(f"{self._name} sent {type(message).__name__}, which a prefill worker does not send")
        try:
            self._dispatch(message, memoryview(frame.payload))
        except PackhorseError as error:
            log.warning("job %s of %s: %s", message.job_id, self._name, error)
            self._drop(message.job_id, message.stream, error)
        except Exception:
            log.exception("the page sink failed on job %s of %s", message.job_id, self._name)
            failure = PackhorseError("internal error in the decode worker's page sink")
            self._drop(message.job_id, message.stream, failure)

    def _dispatch(self, message: Any, payload: memoryview) -> None:
        """Raises what the sink raises; FrameError for a frame out of order."""
        job_id: str = message.job_id
        if isinstance(message, StreamOpen):
            self._open(message)
        elif message.stream <= self._dropped.get(job_id, -1):
            return
        elif isinstance(message, StreamAbort):
            if self.streams.get(job_id) == message.stream:
                self._end_badly(job_id, message.error.error())
        elif self.streams.get(job_id) != message.stream:
            raise FrameError(f"{type(message).__name__} came for job {job_id}, whose stream was never opened")
        elif isinstance(message, StreamEnd):
            self._sink.ended(message)
            del self.streams[job_id]
            self._reply(StreamAck(job_id=job_id, stream=message.stream))
        else:
            self._hand_over(message, payload)

    def _open(self, message: StreamOpen) -> None:
        if any(message.job_id in peer.streams for peer in self._peers):
            error = FrameError(f"job {message.job_id} has an open stream already")
            if message.job_id in self.streams:
                self._end_badly(message.job_id, error)
            raise error
        self._sink.opened(message)
        self.streams[message.job_id] = message.stream

    def _hand_over(self, message: Pages | Residual, payload: memoryview) -> None:
        try:
            self._check(message, payload)
        except FrameError as error:
            self._end_badly(message.job_id, error)
            raise
        if isinstance(message, Pages):
            self._sink.pages(message, payload)
        else:
            self._sink.residual(message, payload)

    def _check(self, message: Pages | Residual, payload: memoryview) -> None:
        name = f"{message.kind} of layer {message.layer} of job {message.job_id}"
        if not 0 <= message.layer < self._layout.layers:
            raise FrameError(f"{name}: the layout has {self._layout.layers} layers")
        expected = expected_bytes(self._layout, message)
        if len(payload) != expected or not expected:
            raise FrameError(f"{name}: {len(payload)} bytes came where the layout asks for {expected}")
        if xxhash.xxh3_64_intdigest(payload) != message.checksum:
            raise FrameError(f"{name}: the checksum does not match, the payload was corrupted on its way")

    def _end_badly(self, job_id: str, error: PackhorseError) -> None:
        """Ends the stream, if it is open, and tells the sink why."""
        if self.streams.pop(job_id, None) is None:
            return
        try:
            self._sink.aborted(job_id, error)
        except Exception:
            log.exception("the page sink failed on the abort of job %s", job_id)


def _first(group: BaseExceptionGroup[TransportError]) -> BaseException:
    leaf: BaseException = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf
