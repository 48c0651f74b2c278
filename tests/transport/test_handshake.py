"""The handshake: who is let in, who is not, and whether both sides are told why."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from packhorse.errors import HandshakeError, LinkClosedError, LinkTimeoutError, TransportError
from tests.waiting import PATIENCE_SECONDS, until
from transport.connect import connect, listen
from transport.handshake import differences, greet, layout_hash
from transport.link import Frame, Link
from transport.messages import Hello, KVLayout, Model, Refused, Welcome
from transport.streams import PageReceiver, PageSender

LAYOUT = KVLayout(
    model="storyteller",
    revision="r1",
    layers=2,
    kv_heads=2,
    head_dim=16,
    dtype="float32",
    kv_format="k4v2",
    page_tokens=64,
    sink_tokens=4,
    page_bytes=1024,
    layout_version=1,
)
OTHER = LAYOUT.model_copy(update={"kv_format": "k2v2", "page_bytes": 768})
SECRET, WRONG = b"mule-and-saddle", b"cart-and-ox"

HAS_UCX = importlib.util.find_spec("ucxx") is not None
UCX = pytest.param(
    "ucx", marks=[pytest.mark.ucx, pytest.mark.skipif(not HAS_UCX, reason="the package ucxx is not installed")]
)
every_link = pytest.mark.parametrize("scheme", ["inproc", "tcp", "zmq", UCX])
pytestmark = pytest.mark.usefixtures("no_tasks")


class NoSink:
    """No stream is opened here."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        raise AssertionError(f"the sink was called: {name}")


@asynccontextmanager
async def receiving(
    scheme: str = "tcp",
    layout: KVLayout = LAYOUT,
    secret: bytes | None = None,
    handshake_seconds: float = PATIENCE_SECONDS,
) -> AsyncIterator[PageReceiver]:
    address = f"inproc://{uuid.uuid4()}" if scheme == "inproc" else f"{scheme}://127.0.0.1:0"
    receiver = await PageReceiver.listen(
        address, "decode-1", layout, NoSink(), secret=secret, handshake_seconds=handshake_seconds
    )
    try:
        yield receiver
    finally:
        await receiver.close()


def test_the_layout_hash_is_of_the_values_alone() -> None:
    assert layout_hash(LAYOUT) == layout_hash(KVLayout(**dict(reversed(LAYOUT.model_dump().items()))))
    fields = LAYOUT.model_dump()
    changed = {layout_hash(KVLayout(**fields | {name: type(value)(7)})) for name, value in fields.items()}
    assert len(changed | {layout_hash(LAYOUT)}) == len(fields) + 1


def test_differences_name_every_field_with_both_values() -> None:
    assert differences(LAYOUT, OTHER) == "kv_format: k4v2 here, k2v2 there; page_bytes: 1024 here, 768 there"
    assert differences(LAYOUT, LAYOUT) == ""


@every_link
@pytest.mark.parametrize("secret", [None, SECRET])
async def test_like_meets_like(scheme: str, secret: bytes | None) -> None:
    async with receiving(scheme, secret=secret) as receiver:
        sender = await PageSender.connect(receiver.address, "prefill-1", LAYOUT, secret=secret)
        assert sender.peer_id == "decode-1"
        await until(lambda: receiver.num_links == 1)
        await sender.close()
        await until(lambda: receiver.num_links == 0)


@every_link
@pytest.mark.parametrize("secret", [None, SECRET])
async def test_another_layout_is_refused_with_every_difference(
    scheme: str, secret: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiving(scheme, secret=secret) as receiver:
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(HandshakeError, match="kv_format: k2v2 here, k4v2 there; page_bytes: 768 here, 1024 there"),
        ):
            await PageSender.connect(receiver.address, "prefill-1", OTHER, secret=secret)
        await until(lambda: "kv_format: k4v2 here, k2v2 there" in caplog.text)
        assert receiver.num_links == 0
        good = await PageSender.connect(receiver.address, "prefill-2", LAYOUT, secret=secret)
        await good.close()


@every_link
@pytest.mark.parametrize(("there", "here"), [(SECRET, WRONG), (SECRET, None), (None, SECRET)])
async def test_a_wrong_or_missing_secret_is_refused(
    scheme: str, there: bytes | None, here: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiving(scheme, secret=there) as receiver:
        with pytest.raises(HandshakeError, match="secret"):
            await PageSender.connect(
                receiver.address, "prefill-1", LAYOUT, secret=here, timeout_seconds=PATIENCE_SECONDS
            )
        await until(lambda: receiver.num_links == 0)
        if scheme != "zmq":
            await until(lambda: "secret" in caplog.text)
            assert SECRET.decode() not in caplog.text


@pytest.mark.parametrize("layout", [LAYOUT, OTHER])
async def test_without_the_secret_a_peer_is_told_neither_layout_nor_credit(layout: KVLayout) -> None:
    """A peer that ignores the challenge learns that the secret is wrong, and no field of the layout."""
    async with receiving(secret=SECRET) as receiver:
        link = await connect(receiver.address)
        await link.send(hello(layout))
        assert isinstance((await link.receive()).message, Welcome)
        await link.send(hello(layout).model_copy(update={"proof": bytes(32)}))
        refused = (await link.receive()).message
        assert isinstance(refused, Refused)
        assert refused.error.message == "the shared secret is wrong or missing"
        with pytest.raises(LinkClosedError):
            await link.receive()
        await link.close()


async def test_a_proof_cannot_be_reflected_or_replayed() -> None:
    async with receiving(secret=SECRET) as receiver:
        proofs = []
        for _ in range(2):
            link = await connect(receiver.address)
            await link.send(hello(LAYOUT))
            welcome = (await link.receive()).message
            await link.send(hello(LAYOUT).model_copy(update={"proof": proofs[-1] if proofs else welcome.proof}))
            assert isinstance((await link.receive()).message, Refused)
            proofs.append(welcome.proof)
            await link.close()
        assert proofs[0] != proofs[1]


async def test_a_hash_that_does_not_belong_to_the_layout_is_refused() -> None:
    async with receiving() as receiver:
        link = await connect(receiver.address)
        await link.send(hello(LAYOUT).model_copy(update={"layout_hash": layout_hash(OTHER)}))
        assert isinstance((await link.receive()).message, Refused)
        await link.close()


@every_link
async def test_silent_peers_keep_nobody_out(scheme: str) -> None:
    async with receiving(scheme) as receiver:
        silent = [await connect(receiver.address) for _ in range(3)]
        sender = await PageSender.connect(receiver.address, "prefill-1", LAYOUT)
        await until(lambda: receiver.num_links == 1)
        await asyncio.gather(sender.close(), *(link.close() for link in silent))


@every_link
async def test_silent_peers_are_let_go(scheme: str) -> None:
    async with receiving(scheme, handshake_seconds=0.3) as receiver:
        for link in [await connect(receiver.address) for _ in range(3)]:
            with pytest.raises(LinkClosedError):
                await asyncio.wait_for(link.receive(), PATIENCE_SECONDS)
            await link.close()


async def test_a_silent_listener_is_given_up() -> None:
    listener = await listen("tcp://127.0.0.1:0")
    with pytest.raises(LinkTimeoutError, match=listener.address):
        await PageSender.connect(listener.address, "prefill-1", LAYOUT, timeout_seconds=0.3)
    await listener.close()


async def test_a_frame_that_is_no_hello_ends_the_link() -> None:
    async with receiving() as receiver:
        link = await connect(receiver.address)
        await link.send(Welcome(worker_id="x", layout_hash="", credit_bytes=1))
        with pytest.raises(LinkClosedError):
            await asyncio.wait_for(link.receive(), PATIENCE_SECONDS)
        await link.close()


class Tamper(Link):
    """Passes frames on, the connecting side's Hello changed on its way."""

    def __init__(self, link: Link, change: dict[str, object]) -> None:
        self.address = link.address
        self._link = link
        self._change = change

    async def send(self, message: Model, payload: bytes | bytearray | memoryview = b"") -> None:
        if isinstance(message, Hello) and not message.proof:
            message = message.model_copy(update=self._change)
        await self._link.send(message, payload)

    async def receive(self) -> Frame:
        return await self._link.receive()

    async def close(self) -> None:
        await self._link.close()


@pytest.mark.parametrize("change", [{"worker_id": "mallory"}, {"nonce": bytes(32)}, {"nonce": b""}])
async def test_what_the_proofs_cover_cannot_be_changed(change: dict[str, object]) -> None:
    async with receiving(secret=SECRET) as receiver:
        link = Tamper(await connect(receiver.address), change)
        with pytest.raises(TransportError):
            await greet(link, "prefill-1", LAYOUT, SECRET, timeout_seconds=PATIENCE_SECONDS)
        await link.close()
        assert receiver.num_links == 0


def hello(layout: KVLayout) -> Hello:
    return Hello(worker_id="prefill-1", layout=layout, layout_hash=layout_hash(layout), nonce=bytes(32))
