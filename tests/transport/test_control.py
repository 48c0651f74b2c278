"""The control plane on real sockets: bounded, outliving bad peers, restarts on either side, and a worker's registration."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import zmq
import zmq.asyncio

from packhorse.errors import ConfigError, HandshakeError, LinkClosedError, RequestError, UnavailableError
from transport.control import ControlClient, ControlServer, WorkerAgent
from transport.messages import (
    MAX_CONTROL_BYTES,
    WIRE_VERSION,
    ErrorInfo,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    Job,
    KVLayout,
    Register,
    Registered,
    Rejected,
    Release,
    Reserve,
    Reserved,
    Sampling,
    StatusRequest,
    WorkerFailed,
    WorkerInfo,
    WorkerLoad,
)
from transport.sockets import Plug

pytestmark = pytest.mark.usefixtures("no_tasks")

LOCAL = "tcp://127.0.0.1:0"
LAYOUT = KVLayout(
    model="m", revision="r", layers=2, kv_heads=1, head_dim=8, dtype="float32", kv_format="raw",
    page_tokens=64, sink_tokens=4, page_bytes=4096, layout_version=1,
)  # fmt: skip
INFO = WorkerInfo(
    worker_id="decode-1", role="decode", layout=LAYOUT, max_context_tokens=512, max_jobs=4, capacity_pages=16
)
JOB = Job(job_id="job-1", prompt=(1, 2), sampling=Sampling(max_tokens=4, seed=0), reply_to="tcp://127.0.0.1:1")


async def soon(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


class FakeScheduler:
    """Answers Register and Heartbeat; remembers everything else."""

    def __init__(self, bind: str = LOCAL, *, epoch: str = "epoch-1", timeout_seconds: float = 5.0) -> None:
        self.server = ControlServer(bind)
        self.epoch, self.timeout_seconds = epoch, timeout_seconds
        self.rejected: ErrorInfo | None = None
        self.known = True
        self.deaf = False
        self.registers = 0
        self.heard: list[Any] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakeScheduler]:
        async with self.server:
            task = asyncio.create_task(self._serve())
            try:
                yield self
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _serve(self) -> None:
        while True:
            peer, message = await self.server.receive()
            if self.deaf:
                continue
            if isinstance(message, Register):
                self.registers += 1
                self.known = True
                answer = Rejected(error=self.rejected) if self.rejected else self.registered()
                await self.server.send(peer, answer)
            elif isinstance(message, Heartbeat):
                await self.server.send(peer, HeartbeatAck(epoch=self.epoch, known=self.known))
            else:
                self.heard.append(message)

    def registered(self) -> Registered:
        return Registered(epoch=self.epoch, heartbeat_seconds=0.05, timeout_seconds=self.timeout_seconds)


class FakeWorker:
    """What an agent calls back."""

    def __init__(self, address: str) -> None:
        self.handled: list[Any] = []
        self.num_lost = 0
        self.error: Exception | None = None
        self.agent = WorkerAgent(address, INFO, self.handle, lambda: WorkerLoad(jobs=1), self.lost)

    def handle(self, message: Any) -> None:
        self.handled.append(message)
        if self.error is not None:
            raise self.error

    def lost(self) -> None:
        self.num_lost += 1

    async def __aenter__(self) -> FakeWorker:
        await self.agent.start(5)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.agent.stop()


# ---- server and client


@pytest.mark.parametrize("secret", [None, b"the shared secret"])
async def test_messages_go_both_ways(secret: bytes | None) -> None:
    async with ControlServer(LOCAL, secret) as server, ControlClient(server.address, "gateway-1", secret) as client:
        await client.send(StatusRequest())
        peer, message = await server.receive()
        assert (peer, message) == (b"gateway-1", StatusRequest())
        assert await server.send(peer, Goodbye(worker_id="x"))
        assert await client.receive() == Goodbye(worker_id="x")


@pytest.mark.parametrize("secret", [None, b"a wrong secret"])
async def test_a_wrong_secret_is_never_heard(secret: bytes | None) -> None:
    async with ControlServer(LOCAL, b"right") as server, ControlClient(server.address, "gateway-1", secret) as client:
        with pytest.raises(UnavailableError, match=server.address):
            await client.send(StatusRequest(), timeout_seconds=0.4)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.receive(), 0.2)


async def test_a_public_bind_needs_a_secret() -> None:
    with pytest.raises(ConfigError, match=r"tcp://0\.0\.0\.0:0.*PACKHORSE_SECRET"):
        await ControlServer("tcp://0.0.0.0:0").start()


async def test_a_taken_or_malformed_address_is_a_config_error() -> None:
    async with ControlServer(LOCAL) as server:
        with pytest.raises(ConfigError, match=server.address):
            await ControlServer(server.address).start()
    for address in ("nonsense", "tcp://127.0.0.1:notaport"):
        with pytest.raises(ConfigError, match=address):
            ControlClient(address, "g")
    with pytest.raises(ConfigError, match="identity"):
        ControlClient("tcp://127.0.0.1:1", "")


async def test_sending_to_a_peer_that_is_gone_is_dropped_and_told(caplog: pytest.LogCaptureFixture) -> None:
    async with ControlServer(LOCAL) as server:
        assert not await server.send(b"nobody", StatusRequest())
        assert "nobody" in caplog.text


async def test_malformed_messages_are_dropped_and_the_server_lives(caplog: pytest.LogCaptureFixture) -> None:
    async with ControlServer(LOCAL) as server, ControlClient(server.address, "honest") as client:
        with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as raw:
            raw.linger = 0
            raw.identity = b"rogue"
            raw.connect(server.address)
            ours = bytes([0x92, WIRE_VERSION])
            for frames in ([b"garbage"], [b""], [b"a", b"b"], [ours + b"\x80"], [b"\x92\x09\x80"], [b"\xc1"]):
                await raw.send_multipart(frames)
            await raw.send_multipart([ours + b"\x81\xa4kind\xaestatus_request"])
            assert await server.receive() == (b"rogue", StatusRequest())
        assert caplog.text.count("rogue") == 6
        await client.send(StatusRequest())
        assert await server.receive() == (b"honest", StatusRequest())


async def test_an_oversized_message_costs_its_sender_the_connection_alone() -> None:
    async with ControlServer(LOCAL) as server, ControlClient(server.address, "honest") as client:
        with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as raw:
            raw.linger = 0
            raw.connect(server.address)
            await raw.send(b"x" * (MAX_CONTROL_BYTES + 4096))
            await client.send(StatusRequest())
            assert await server.receive() == (b"honest", StatusRequest())


async def test_a_peer_under_the_same_identity_takes_over() -> None:
    async with ControlServer(LOCAL) as server, ControlClient(server.address, "worker") as first:
        await first.send(StatusRequest())
        await server.receive()
        async with ControlClient(server.address, "worker") as second:
            await second.send(StatusRequest())
            peer, _ = await server.receive()
            assert await server.send(peer, Goodbye(worker_id="to-second"))
            assert await asyncio.wait_for(second.receive(), 2) == Goodbye(worker_id="to-second")


async def test_a_client_with_no_server_says_so_and_tells_of_a_broken_connection() -> None:
    broken: list[bool] = []
    server = ControlServer(LOCAL)
    await server.start()
    async with ControlClient(server.address, "g", disconnected=lambda: broken.append(True)) as client:
        await client.send(StatusRequest())
        await server.receive()
        await server.stop()
        await soon(lambda: bool(broken))
        assert not client.send_now(StatusRequest())
        with pytest.raises(UnavailableError, match=server.address):
            await client.send(StatusRequest(), timeout_seconds=0.1)
        async with ControlServer(server.address) as again:
            await client.send(StatusRequest())
            assert await again.receive() == (b"g", StatusRequest())


async def test_what_came_before_a_broken_connection_can_still_be_read() -> None:
    server = ControlServer(LOCAL)
    await server.start()
    broken = asyncio.Event()
    async with ControlClient(server.address, "g", disconnected=broken.set) as client:
        await client.send(StatusRequest())
        peer, _ = await server.receive()
        for name in "abc":
            assert await server.send(peer, Goodbye(worker_id=name))
        await server.stop()
        await broken.wait()
        assert [(await client.receive()).worker_id for _ in range(3)] == ["a", "b", "c"]


async def test_a_pending_receive_ends_when_its_side_closes() -> None:
    server = ControlServer(LOCAL)
    await server.start()
    client = ControlClient(server.address, "g")
    pending = [asyncio.ensure_future(server.receive()), asyncio.ensure_future(client.receive())]
    await asyncio.sleep(0.05)
    await client.close()
    await server.stop()
    for task in pending:
        with pytest.raises(LinkClosedError):
            await task
    with pytest.raises(LinkClosedError):
        await client.receive()
    with pytest.raises(LinkClosedError):
        await client.send(StatusRequest())


async def test_a_cancelled_close_still_ends_the_context() -> None:
    plug = Plug(zmq.DEALER, None)
    plug.connect("tcp://127.0.0.1:9", lambda _: None)
    closing = asyncio.create_task(plug.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await soon(lambda: plug.context.closed)


# ---- the worker's agent


async def test_an_agent_registers_heartbeats_passes_messages_and_says_goodbye() -> None:
    async with FakeScheduler().running() as scheduler:
        async with FakeWorker(scheduler.server.address) as worker:
            assert worker.agent.registered
            for job_id in ("a", "b", "c"):
                await scheduler.server.send(b"decode-1", Release(job_id=job_id, reason="test"))
            await soon(lambda: len(worker.handled) == 3)
            assert [message.job_id for message in worker.handled] == ["a", "b", "c"]
            worker.agent.send(Reserved(job_id="a", worker_id="decode-1"))
            await soon(lambda: bool(scheduler.heard))
        await soon(lambda: Goodbye(worker_id="decode-1") in scheduler.heard)
        assert scheduler.registers == 1
        assert worker.num_lost == 0


async def test_an_agent_keeps_registering_until_a_scheduler_comes() -> None:
    async with ControlServer(LOCAL) as probe:
        address = probe.address
    worker = FakeWorker(address)
    starting = asyncio.create_task(worker.agent.start(5))
    await asyncio.sleep(0.2)
    async with FakeScheduler(address).running():
        await starting
        assert worker.agent.registered
        await worker.agent.stop()
    assert worker.num_lost == 0


async def test_start_raises_the_rejection() -> None:
    async with FakeScheduler().running() as scheduler:
        scheduler.rejected = ErrorInfo.of(ConfigError("kv_format=k2v2 differs from raw"))
        worker = FakeWorker(scheduler.server.address)
        with pytest.raises(ConfigError, match="k2v2 differs"):
            await worker.agent.start(5)
        assert not worker.agent.registered


async def test_start_gives_up_after_its_timeout() -> None:
    worker = FakeWorker("tcp://127.0.0.1:9")
    with pytest.raises(UnavailableError, match="no scheduler answered"):
        await worker.agent.start(0.2)


async def test_a_restarted_scheduler_loses_the_jobs_once_and_gets_the_worker_back() -> None:
    async with FakeScheduler().running() as first:
        worker = FakeWorker(first.server.address)
        await worker.agent.start(5)
    await soon(lambda: worker.num_lost == 1)
    assert not worker.agent.registered
    worker.agent.send(Reserved(job_id="a", worker_id="decode-1"))  # dropped: nobody knows the job
    async with FakeScheduler(first.server.address, epoch="epoch-2").running() as second:
        await soon(lambda: worker.agent.registered)
        assert second.heard == []
        await worker.agent.stop()
    assert worker.num_lost == 1


async def test_a_silent_scheduler_is_lost_once_and_registered_at_again() -> None:
    async with FakeScheduler(timeout_seconds=0.3).running() as scheduler:
        async with FakeWorker(scheduler.server.address) as worker:
            await asyncio.sleep(0.5)
            assert worker.num_lost == 0
            scheduler.deaf = True
            await soon(lambda: worker.num_lost == 1)
            await asyncio.sleep(0.5)
            assert worker.num_lost == 1
            scheduler.deaf = False
            await soon(lambda: worker.agent.registered)
        assert worker.num_lost == 1


@pytest.mark.parametrize("change", [{"epoch": "epoch-2"}, {"known": False}])
async def test_a_scheduler_that_forgot_the_worker_gets_a_new_registration(change: dict[str, Any]) -> None:
    async with FakeScheduler().running() as scheduler, FakeWorker(scheduler.server.address) as worker:
        for name, value in change.items():
            setattr(scheduler, name, value)
        await soon(lambda: worker.num_lost == 1)
        await soon(lambda: worker.agent.registered and scheduler.registers == 2)


async def test_a_second_answer_to_register_drops_the_jobs() -> None:
    async with FakeScheduler().running() as scheduler, FakeWorker(scheduler.server.address) as worker:
        await scheduler.server.send(b"decode-1", scheduler.registered())
        await soon(lambda: worker.num_lost == 1)
        assert worker.agent.registered


async def test_a_rejection_after_a_restart_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeScheduler().running() as scheduler, FakeWorker(scheduler.server.address) as worker:
        scheduler.rejected = ErrorInfo.of(ConfigError("layout differs"))
        scheduler.known = False
        await soon(lambda: "layout differs" in caplog.text)
        scheduler.rejected, scheduler.known = None, True
        await soon(lambda: worker.agent.registered)
        assert worker.num_lost == 1


@pytest.mark.parametrize(
    ("error", "code"), [(RequestError("no pages"), "invalid_request"), (KeyError("bug"), "internal_error")]
)
async def test_a_failing_handler_fails_its_job_and_not_the_agent(
    error: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with FakeScheduler().running() as scheduler, FakeWorker(scheduler.server.address) as worker:
        worker.error = error
        await scheduler.server.send(b"decode-1", Reserve(job=JOB, pages=1, prefill_worker="p"))
        await soon(lambda: bool(scheduler.heard))
        (failed,) = scheduler.heard
        assert isinstance(failed, WorkerFailed)
        assert (failed.job_id, failed.error.code) == ("job-1", code)
        worker.error = None
        await scheduler.server.send(b"decode-1", Release(job_id="job-1", reason="test"))
        await soon(lambda: len(worker.handled) == 2)


async def test_an_awaiting_handler_keeps_the_order_and_the_heartbeat() -> None:
    seen: list[str] = []

    async def slow(message: Any) -> None:
        await asyncio.sleep(0.25 if message.job_id == "a" else 0)
        seen.append(message.job_id)

    lost: list[bool] = []
    async with FakeScheduler(timeout_seconds=0.15).running() as scheduler:
        agent = WorkerAgent(scheduler.server.address, INFO, slow, WorkerLoad, lambda: lost.append(True))
        await agent.start(5)
        for job_id in ("a", "b"):
            await scheduler.server.send(b"decode-1", Release(job_id=job_id, reason="test"))
        await soon(lambda: len(seen) == 2)
        await agent.stop()
        await agent.stop()
    assert seen == ["a", "b"]
    assert lost == []


@pytest.mark.parametrize("secret", [None, b"a wrong secret"])
async def test_a_worker_with_a_wrong_secret_is_told_at_once(secret: bytes | None) -> None:
    async with ControlServer(LOCAL, b"right") as server:
        agent = WorkerAgent(server.address, INFO, lambda _: None, WorkerLoad, lambda: None, secret)
        with pytest.raises(HandshakeError, match="does not share our secret"):
            await agent.start(10.0)
