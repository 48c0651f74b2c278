"""One job's pages and residuals on the prefill side, cut into frames, and the lease on their memory.

Payloads stay referenced (the lease) until the receiver acknowledged them, either side aborted, or the link was lost.
Everything here runs on the event loop's thread. This file knows nothing of links or of other streams.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from packhorse.errors import JobCancelledError, LinkTimeoutError, PackhorseError

from .flow import Credits, FrameQueue, Outgoing
from .framing import Payload, flat
from .messages import KVLayout, Model, Pages, Residual, StreamEnd, StreamOpen
from .payload_sizes import page_layer_bytes, residual_bytes

FRAME_BYTES = 1024 * 1024  # a frame has as many of a layer's pages as fit, and one at least


class StreamOwner(Protocol):
    """What a stream needs of its PageSender."""

    address: str
    layout: KVLayout
    credits: Credits

    def queue(self, stream: SendStream) -> None:
        """`stream` has frames to send."""

    def forget(self, stream: SendStream, error: PackhorseError | None) -> None:
        """`stream` has ended; `error` is what the peer is to be told."""


class SendStream:
    """One job's pages and residuals, on their way. Made by `PageSender.open`, ended by `finish` or `abort`."""

    def __init__(self, sender: StreamOwner, job_id: str, priority: int, number: int) -> None:
        """`number` is greater than that of every stream that the sender opened before."""
        self.job_id, self.number = job_id, number
        self.outbox = FrameQueue(priority, number)
        self.error: PackhorseError | None = None
        self.announced = False  # its StreamOpen has been sent
        self.bytes_sent = 0
        self.pending_bytes = 0  # queued or not yet acknowledged: the lease
        self._sender = sender
        self._leased: list[memoryview] = []
        self._finishing = False
        self._ended = asyncio.Event()
        self._start: tuple[int, float] | None = None  # (delivered bytes, busy seconds) of the link at the first payload
        self._put(StreamOpen(job_id=job_id, stream=number, priority=priority))

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
            pages = Pages(
                job_id=self.job_id,
                stream=self.number,
                layer=layer,
                first_page=first_page + start,
                num_pages=count,
                checksum=0,
            )
            self._put(pages, view[start * page : (start + count) * page])

    def put_residual(self, layer: int, num_tokens: int, payload: Payload) -> None:
        """Queues one layer's residual, [2, kv_heads, num_tokens, head_dim] of the layout's dtype; else as `put_pages`."""
        view, expected = flat(payload), residual_bytes(self._sender.layout, num_tokens)
        if num_tokens < 1 or len(view) != expected:
            raise ValueError(f"{num_tokens} residual tokens of layer {layer} have {expected} bytes, not {len(view)}")
        self._put(
            Residual(job_id=self.job_id, stream=self.number, layer=layer, num_tokens=num_tokens, checksum=0), view
        )

    async def finish(self, end: StreamEnd, timeout_seconds: float) -> None:
        """Sends `end` and waits for the acknowledgement. Raises the peer's or the link's error; LinkTimeoutError aborts the stream.

        A cancelled finish aborts it too.
        """
        if end.job_id != self.job_id:
            raise ValueError(f"the end of job {end.job_id} does not belong to job {self.job_id}")
        self._put(end.model_copy(update={"stream": self.number}))
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
