"""What the tests of page streams share: a small layout, jobs of known bytes, a sink that keeps everything, links that misbehave."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from packhorse.errors import PackhorseError
from tests.waiting import PATIENCE_SECONDS
from transport.connect import connect, listen
from transport.handshake import admit, greet
from transport.link import Frame, Link
from transport.messages import (
    JobStats,
    KVLayout,
    Model,
    Pages,
    Residual,
    StreamAbort,
    StreamEnd,
    StreamOpen,
    TokenOutput,
)
from transport.payload_sizes import page_layer_bytes, residual_bytes
from transport.streams import PageReceiver, PageSender, SendStream

LAYOUT = KVLayout(
    model="storyteller",
    revision="r1",
    layers=3,
    kv_heads=2,
    head_dim=16,
    dtype="float32",
    kv_format="k4v2",
    page_tokens=64,
    sink_tokens=4,
    page_bytes=1024,
    layout_version=1,
)
PAGE = page_layer_bytes(LAYOUT)


@dataclass
class JobBytes:
    """The payloads of one job: every layer's pages and residual."""

    job_id: str
    num_pages: int
    num_residual: int
    pages: list[bytes]  # by layer
    residuals: list[bytes]

    @classmethod
    def make(cls, job_id: str, num_pages: int = 3, num_residual: int = 5) -> JobBytes:
        source = random.Random(job_id)
        size = residual_bytes(LAYOUT, num_residual)
        return cls(
            job_id,
            num_pages,
            num_residual,
            [source.randbytes(num_pages * PAGE) for _ in range(LAYOUT.layers)],
            [source.randbytes(size) for _ in range(LAYOUT.layers)],
        )

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.pages + self.residuals))

    def put(self, stream: SendStream) -> None:
        for layer, payload in enumerate(self.pages):
            if self.num_pages:
                stream.put_pages(layer, 0, memoryview(payload), self.num_pages)
            stream.put_residual(layer, self.num_residual, memoryview(self.residuals[layer]))

    def end(self) -> StreamEnd:
        first = TokenOutput(job_id=self.job_id, index=0, token_id=1)
        return StreamEnd(
            job_id=self.job_id, prompt_tokens=1, num_pages=self.num_pages, first_token=first, stats=JobStats()
        )

    async def ship(
        self, sender: PageSender, priority: int = 0, timeout_seconds: float = PATIENCE_SECONDS
    ) -> SendStream:
        stream = sender.open(self.job_id, priority)
        self.put(stream)
        await stream.finish(self.end(), timeout_seconds)
        return stream


@dataclass
class KeepingSink:
    """Keeps what comes, and holds the sender to the order of a stream. `fail` may raise at any call."""

    fail: Callable[[str, str], None] = lambda call, job_id: None
    open: dict[str, dict[tuple[str, int], bytearray]] = field(default_factory=dict)
    done: dict[str, dict[tuple[str, int], bytearray]] = field(default_factory=dict)
    errors: dict[str, PackhorseError] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)

    def opened(self, message: StreamOpen) -> None:
        self._called("opened", message.job_id)
        assert message.job_id not in self.open
        self.open[message.job_id] = {}

    def pages(self, message: Pages, payload: memoryview) -> None:
        self._called("pages", message.job_id)
        kept = self.open[message.job_id].setdefault(("pages", message.layer), bytearray())
        assert len(kept) == message.first_page * PAGE
        kept += payload

    def residual(self, message: Residual, payload: memoryview) -> None:
        self._called("residual", message.job_id)
        self.open[message.job_id]["residual", message.layer] = bytearray(payload)

    def ended(self, message: StreamEnd) -> None:
        self._called("ended", message.job_id)
        self.done[message.job_id] = self.open.pop(message.job_id)

    def aborted(self, job_id: str, error: PackhorseError) -> None:
        self._called("aborted", job_id)
        del self.open[job_id]
        self.errors[job_id] = error

    def holds(self, job: JobBytes) -> bool:
        expected = {("pages", layer): payload for layer, payload in enumerate(job.pages) if job.num_pages}
        expected |= {("residual", layer): payload for layer, payload in enumerate(job.residuals)}
        return self.done.get(job.job_id) == expected

    def _called(self, call: str, job_id: str) -> None:
        self.calls.append((call, job_id))
        self.fail(call, job_id)


class Wrapped(Link):
    """Passes everything on; a subclass changes something."""

    def __init__(self, link: Link) -> None:
        self.address = link.address
        self.link = link

    async def send(self, message: Model, payload: bytes | bytearray | memoryview = b"") -> None:
        await self.link.send(message, payload)

    async def receive(self) -> Frame:
        return await self.link.receive()

    async def close(self) -> None:
        await self.link.close()


def free_address(scheme: str) -> str:
    return f"inproc://{uuid.uuid4()}" if scheme == "inproc" else f"{scheme}://127.0.0.1:0"


@asynccontextmanager
async def streaming(
    scheme: str,
    sink: KeepingSink,
    credit_bytes: int = 1024 * 1024,
    wrap: Callable[[Link], Link] = lambda link: link,
) -> AsyncIterator[tuple[PageSender, PageReceiver]]:
    """A sender and a receiver that have shaken hands; afterwards nothing is left on either."""
    receiver = await PageReceiver.listen(free_address(scheme), "decode-1", LAYOUT, sink, credit_bytes=credit_bytes)
    link = wrap(await connect(receiver.address))
    welcome = await greet(link, "prefill-1", LAYOUT, None)
    sender = PageSender(link, LAYOUT, welcome.credit_bytes, welcome.worker_id)
    try:
        yield sender, receiver
    finally:
        await sender.close()
        await receiver.close()
        assert receiver.num_links == 0
        assert sink.open == {}


@asynccontextmanager
async def raw_receiver(scheme: str, credit_bytes: int = 1024 * 1024) -> AsyncIterator[tuple[PageSender, Link]]:
    """A sender, and the bare link at its peer, which has welcomed it."""
    listener = await listen(free_address(scheme))
    connecting = asyncio.create_task(PageSender.connect(listener.address, "prefill-1", LAYOUT))
    link = await listener.accept()
    await admit(link, "decode-1", LAYOUT, None, credit_bytes)
    sender = await connecting
    await listener.close()
    try:
        yield sender, link
    finally:
        await sender.close()
        await link.close()


@asynccontextmanager
async def raw_sender(scheme: str, sink: KeepingSink) -> AsyncIterator[Link]:
    """A bare link that has shaken hands with a receiver."""
    receiver = await PageReceiver.listen(free_address(scheme), "decode-1", LAYOUT, sink)
    link = await connect(receiver.address)
    await greet(link, "prefill-1", LAYOUT, None)
    try:
        yield link
    finally:
        await link.close()
        await receiver.close()


async def abort_of(link: Link, job_id: str) -> PackhorseError:
    """The error of the next StreamAbort for `job_id`."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            message = (await link.receive()).message
            if isinstance(message, StreamAbort) and message.job_id == job_id:
                return message.error.error()
