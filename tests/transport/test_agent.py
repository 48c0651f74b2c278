"""A worker's agent on real sockets: registering, beating, losing its scheduler and finding it again."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from packhorse.errors import ConfigError, HandshakeError, RequestError, UnavailableError
from tests.transport.control_fakes import INFO, JOB, LOCAL, FakeScheduler, FakeWorker
from tests.waiting import PATIENCE_SECONDS, until
from transport.control import ControlServer, WorkerAgent
from transport.messages import (
    ErrorInfo,
    Goodbye,
    Release,
    Reserve,
    Reserved,
    WorkerFailed,
    WorkerLoad,
)

pytestmark = pytest.mark.usefixtures("no_tasks")


async def test_an_agent_registers_heartbeats_passes_messages_and_says_goodbye() -> None:
    async with FakeScheduler().running() as scheduler:
        async with FakeWorker(scheduler.server.address) as worker:
            assert worker.agent.registered
            for job_id in ("a", "b", "c"):
                await scheduler.server.send(b"decode-1", Release(job_id=job_id, reason="test"))
            await until(lambda: len(worker.handled) == 3)
            assert [message.job_id for message in worker.handled] == ["a", "b", "c"]
            worker.agent.send(Reserved(job_id="a", worker_id="decode-1"))
            await until(lambda: bool(scheduler.heard))
        await until(lambda: Goodbye(worker_id="decode-1") in scheduler.heard)
        assert scheduler.registers == 1
        assert worker.num_lost == 0


async def test_an_agent_keeps_registering_until_a_scheduler_comes() -> None:
    async with ControlServer(LOCAL) as probe:
        address = probe.address
    worker = FakeWorker(address)
    starting = asyncio.create_task(worker.agent.start(PATIENCE_SECONDS))
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
            await worker.agent.start(PATIENCE_SECONDS)
        assert not worker.agent.registered


async def test_start_gives_up_after_its_timeout() -> None:
    worker = FakeWorker("tcp://127.0.0.1:9")
    with pytest.raises(UnavailableError, match="no scheduler answered"):
        await worker.agent.start(0.2)


async def test_a_restarted_scheduler_loses_the_jobs_once_and_gets_the_worker_back() -> None:
    async with FakeScheduler().running() as first:
        worker = FakeWorker(first.server.address)
        await worker.agent.start(PATIENCE_SECONDS)
    await until(lambda: worker.num_lost == 1)
    assert not worker.agent.registered
    worker.agent.send(Reserved(job_id="a", worker_id="decode-1"))  # dropped: nobody knows the job
    async with FakeScheduler(first.server.address, epoch="epoch-2").running() as second:
        await until(lambda: worker.agent.registered)
        assert second.heard == []
        await worker.agent.stop()
    assert worker.num_lost == 1


async def test_a_silent_scheduler_is_lost_once_and_registered_at_again() -> None:
    async with FakeScheduler(timeout_seconds=0.3).running() as scheduler:
        async with FakeWorker(scheduler.server.address) as worker:
            await asyncio.sleep(0.5)
            assert worker.num_lost == 0
            scheduler.deaf = True
            await until(lambda: worker.num_lost == 1)
            await asyncio.sleep(0.5)
            assert worker.num_lost == 1
            scheduler.deaf = False
            await until(lambda: worker.agent.registered)
        assert worker.num_lost == 1


async def test_a_pause_of_the_worker_is_no_silence_of_the_scheduler() -> None:
    """Heartbeats from before the pause may be unanswered after it: the scheduler gets its whole time to answer anew."""
    async with (
        FakeScheduler(timeout_seconds=1.0).running() as scheduler,
        FakeWorker(scheduler.server.address) as worker,
    ):
        scheduler.deaf = True
        await asyncio.sleep(0.2)
        time.sleep(1.3)  # noqa: ASYNC251  the pause is what is tested
        await asyncio.sleep(0.3)
        scheduler.deaf = False
        await asyncio.sleep(0.2)
        assert worker.num_lost == 0


@pytest.mark.parametrize("change", [{"epoch": "epoch-2"}, {"known": False}])
async def test_a_scheduler_that_forgot_the_worker_gets_a_new_registration(change: dict[str, Any]) -> None:
    async with FakeScheduler().running() as scheduler, FakeWorker(scheduler.server.address) as worker:
        for name, value in change.items():
            setattr(scheduler, name, value)
        await until(lambda: worker.num_lost == 1)
        await until(lambda: worker.agent.registered and scheduler.registers == 2)


async def test_a_second_answer_to_register_drops_the_jobs() -> None:
    async with FakeScheduler().running() as scheduler, FakeWorker(scheduler.server.address) as worker:
        await scheduler.server.send(b"decode-1", scheduler.registered())
        await until(lambda: worker.num_lost == 1)
        assert worker.agent.registered


async def test_a_rejection_after_a_restart_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeScheduler().running() as scheduler, FakeWorker(scheduler.server.address) as worker:
        scheduler.rejected = ErrorInfo.of(ConfigError("layout differs"))
        scheduler.known = False
        await until(lambda: "layout differs" in caplog.text)
        scheduler.rejected, scheduler.known = None, True
        await until(lambda: worker.agent.registered)
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
        await until(lambda: bool(scheduler.heard))
        (failed,) = scheduler.heard
        assert isinstance(failed, WorkerFailed)
        assert (failed.job_id, failed.error.code) == ("job-1", code)
        worker.error = None
        await scheduler.server.send(b"decode-1", Release(job_id="job-1", reason="test"))
        await until(lambda: len(worker.handled) == 2)


async def test_an_awaiting_handler_keeps_the_order_and_the_heartbeat() -> None:
    seen: list[str] = []

    async def slow(message: Any) -> None:
        await asyncio.sleep(0.8 if message.job_id == "a" else 0)
        seen.append(message.job_id)

    lost: list[bool] = []
    async with FakeScheduler(timeout_seconds=0.4).running() as scheduler:
        agent = WorkerAgent(scheduler.server.address, INFO, slow, WorkerLoad, lambda: lost.append(True))
        await agent.start(PATIENCE_SECONDS)
        for job_id in ("a", "b"):
            await scheduler.server.send(b"decode-1", Release(job_id=job_id, reason="test"))
        await until(lambda: len(seen) == 2)
        await agent.stop()
        await agent.stop()
    assert seen == ["a", "b"]
    assert lost == []


@pytest.mark.parametrize("secret", [None, b"a wrong secret"])
async def test_a_worker_with_a_wrong_secret_is_told_at_once(secret: bytes | None) -> None:
    async with ControlServer(LOCAL, b"right") as server:
        agent = WorkerAgent(server.address, INFO, lambda _: None, WorkerLoad, lambda: None, secret)
        with pytest.raises(HandshakeError, match="does not share our secret"):
            await agent.start(PATIENCE_SECONDS)
