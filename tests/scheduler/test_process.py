"""The scheduler process on real ZeroMQ with small workers that hold nothing but job ids."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from packhorse.config import SchedulerConfig
from packhorse.errors import ConfigError, HandshakeError
from scheduler.predictor import JobFeatures
from scheduler.process import Scheduler
from tests.scheduler.fakes import LAYOUT, decode_info, make_job, prefill_info
from tests.waiting import PATIENCE_SECONDS, until
from transport.control import ControlClient, ControlServer, WorkerAgent
from transport.messages import (
    Cancel,
    JobDone,
    JobEnded,
    JobFailed,
    JobStats,
    Placed,
    PrefillDone,
    Release,
    Released,
    Reserve,
    Reserved,
    StartPrefill,
    Status,
    StatusRequest,
    Submit,
    WorkerInfo,
    WorkerLoad,
)

pytestmark = pytest.mark.usefixtures("no_tasks")

SECRET = "the shared secret"


def config(**changes: Any) -> SchedulerConfig:
    fast = {
        "bind": "tcp://127.0.0.1:0",
        "heartbeat_seconds": 0.1,
        "worker_timeout_seconds": 0.6,
        "release_seconds": 2.0,
    }
    return SchedulerConfig(**{**fast, **changes})


class FakeWorker:
    """Reserves, prefills and decodes at once; with `stuck` it holds every job until it is released."""

    def __init__(self, address: str, info: WorkerInfo, secret: bytes | None = None) -> None:
        self.info = info
        self.agent = WorkerAgent(address, info, self.handle, lambda: WorkerLoad(jobs=len(self.held)), self.lost, secret)
        self.held: set[str] = set()
        self.num_lost = 0
        self.stuck = False

    def handle(self, message: Any) -> None:
        names = {"worker_id": self.info.worker_id}
        match message:
            case Reserve():
                self.held.add(message.job.job_id)
                self.agent.send(Reserved(job_id=message.job.job_id, **names))
            case StartPrefill():
                self.held.add(message.job.job_id)
                if not self.stuck:
                    self.finish(message.job.job_id)
            case Release():
                self.held.discard(message.job_id)
                self.agent.send(Released(job_id=message.job_id, **names))

    def finish(self, job_id: str) -> None:
        self.held.discard(job_id)
        kind: Any = PrefillDone if self.info.role == "prefill" else JobDone
        extra = {"finish_reason": None} if self.info.role == "prefill" else {}
        self.agent.send(kind(job_id=job_id, worker_id=self.info.worker_id, stats=JobStats(), **extra))

    def lost(self) -> None:
        self.held.clear()
        self.num_lost += 1

    async def die(self) -> None:
        """As if killed: no Goodbye, the connection breaks."""
        self.agent._registered = None
        await self.agent.stop()


class Cluster:
    def __init__(self, scheduler: Scheduler, gateway: ControlClient, prefill: FakeWorker, decode: FakeWorker) -> None:
        self.scheduler, self.gateway, self.prefill, self.decode = scheduler, gateway, prefill, decode

    async def expect(self, kind: type) -> Any:
        """The next message to the gateway, which must be of this kind."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            message = await self.gateway.receive()
        assert isinstance(message, kind), message
        return message

    async def status(self) -> Status:
        await self.gateway.send(StatusRequest())
        status: Status = await self.expect(Status)
        return status


@contextlib.asynccontextmanager
async def cluster(secret: str | None = None, **changes: Any) -> AsyncIterator[Cluster]:
    async with contextlib.AsyncExitStack() as stack:
        scheduler = await stack.enter_async_context(Scheduler(config(secret=secret, **changes)))
        key = secret.encode() if secret else None
        gateway = await stack.enter_async_context(ControlClient(scheduler.address, "gateway-1", key))
        workers = [FakeWorker(scheduler.address, info, key) for info in (prefill_info(), decode_info())]
        for worker in workers:
            await worker.agent.start(PATIENCE_SECONDS)
            stack.push_async_callback(worker.agent.stop)
        yield Cluster(scheduler, gateway, *workers)


@pytest.mark.parametrize("secret", [None, SECRET])
async def test_jobs_run_through(secret: str | None) -> None:
    async with cluster(secret) as c:
        for index in range(5):
            await c.gateway.send(Submit(job=make_job(f"job-{index}")))
            placed = await c.expect(Placed)
            assert (placed.prefill_worker, placed.decode_worker) == ("p1", "d1")
            await until(lambda: not c.prefill.held)
            c.decode.finish(f"job-{index}")
            ended = await c.expect(JobEnded)
            assert ended.job_id == f"job-{index}"
        status = await c.status()
        assert status.jobs_total == {"done": 5}
        assert [worker.jobs for worker in status.workers] == [0, 0]
        assert c.decode.held == set()


async def test_a_cancelled_job_is_released_everywhere() -> None:
    async with cluster() as c:
        c.prefill.stuck = True
        await c.gateway.send(Submit(job=make_job()))
        await c.expect(Placed)
        await until(lambda: bool(c.prefill.held and c.decode.held))
        await c.gateway.send(Cancel(job_id="job-1", reason="left"))
        await until(lambda: not c.prefill.held and not c.decode.held)
        await until(lambda: not c.scheduler.core.jobs)
        assert (await c.status()).jobs_total == {"cancelled": 1}


@pytest.mark.parametrize("victim", ["prefill", "decode"])
async def test_a_killed_worker_fails_its_jobs_and_is_used_again_when_it_comes_back(victim: str) -> None:
    async with cluster() as c:
        c.prefill.stuck = True
        await c.gateway.send(Submit(job=make_job()))
        await c.expect(Placed)
        dead, other = (c.prefill, c.decode) if victim == "prefill" else (c.decode, c.prefill)
        await until(lambda: bool(c.prefill.held and c.decode.held))
        await dead.die()
        failure = await c.expect(JobFailed)
        assert failure.error.code == "worker_lost"
        assert dead.info.worker_id in failure.error.message
        await until(lambda: not other.held)
        back = FakeWorker(c.scheduler.address, dead.info)
        await back.agent.start(PATIENCE_SECONDS)
        c.prefill.stuck = False
        await c.gateway.send(Submit(job=make_job("job-2")))
        await c.expect(Placed)
        await back.agent.stop()


async def test_a_worker_restarted_under_its_id_at_once_has_its_jobs_failed() -> None:
    async with cluster(worker_timeout_seconds=30) as c:
        await c.gateway.send(Submit(job=make_job()))
        await c.expect(Placed)
        await until(lambda: c.scheduler.core.jobs["job-1"].state.value == "decoding")
        await c.decode.die()
        back = FakeWorker(c.scheduler.address, c.decode.info)
        await back.agent.start(PATIENCE_SECONDS)
        failure = await c.expect(JobFailed)
        assert failure.error.code == "worker_lost"
        await back.agent.stop()


async def test_a_worker_that_says_goodbye_is_gone_at_once() -> None:
    async with cluster(worker_timeout_seconds=30) as c:
        await c.decode.agent.stop()
        await until(lambda: len(c.scheduler.core.workers) == 1)
        await c.gateway.send(Submit(job=make_job()))
        failure = await c.expect(JobFailed)
        assert failure.error.code == "unavailable"


async def test_a_gateway_that_vanishes_has_its_jobs_cancelled() -> None:
    async with cluster() as c:
        c.prefill.stuck = True
        await c.gateway.send(Submit(job=make_job()))
        await c.expect(Placed)
        await c.gateway.close()
        await until(lambda: not c.prefill.held and not c.decode.held)
        await until(lambda: not c.scheduler.core.jobs)
        assert c.scheduler.core.totals == {"cancelled": 1}


async def test_a_restarted_scheduler_gets_its_workers_back_without_their_jobs() -> None:
    async with cluster() as c:
        await c.gateway.send(Submit(job=make_job()))
        await c.expect(Placed)
        address = c.scheduler.address
        await c.scheduler.stop()
        failure = await c.expect(JobFailed)
        assert failure.error.code == "unavailable"
        await until(lambda: not c.decode.held)
        async with Scheduler(config(bind=address)) as again:
            await until(lambda: len(again.core.workers) == 2)
            assert c.decode.num_lost == 1
            await c.gateway.send(Submit(job=make_job("job-2")))
            await c.expect(Placed)


async def test_a_worker_with_another_layout_is_rejected_at_start() -> None:
    async with cluster() as c:
        other = LAYOUT.model_copy(update={"kv_format": "k4v2"})
        worker = FakeWorker(c.scheduler.address, decode_info("d2", layout=other))
        with pytest.raises(ConfigError, match="kv_format='k4v2' instead of 'raw'"):
            await worker.agent.start(PATIENCE_SECONDS)


@pytest.mark.parametrize("secret", [None, b"a wrong secret"])
async def test_a_wrong_secret_is_never_heard(secret: bytes | None) -> None:
    async with cluster(SECRET) as c:
        worker = FakeWorker(c.scheduler.address, decode_info("d2"), secret)
        with pytest.raises(HandshakeError, match="secret"):
            await worker.agent.start(PATIENCE_SECONDS)
        assert len(c.scheduler.core.workers) == 2


async def test_start_refuses_a_public_bind_without_a_secret_and_a_taken_address() -> None:
    with pytest.raises(ConfigError, match="PACKHORSE_SECRET"):
        await Scheduler(config(bind="tcp://0.0.0.0:0")).start()
    async with ControlServer("tcp://127.0.0.1:0") as taken:
        with pytest.raises(ConfigError, match=taken.address):
            await Scheduler(config(bind=taken.address)).start()


async def test_stopping_twice_or_before_the_start_is_harmless() -> None:
    scheduler = Scheduler(config())
    await scheduler.stop()
    await scheduler.start()
    await scheduler.stop()
    await scheduler.stop()


@pytest.mark.parametrize("where", ["queue", "place_heads"])
async def test_a_fault_of_the_scheduler_fails_the_job_and_not_the_scheduler(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(*_: object) -> None:
        raise ZeroDivisionError("a worker whose steps take no time")

    async with cluster() as c:
        with monkeypatch.context() as patched:
            patched.setattr(c.scheduler.core._life, where, fault)
            await c.gateway.send(Submit(job=make_job()))
            failure = await c.expect(JobFailed)
        assert (failure.job_id, failure.error.code) == ("job-1", "internal_error")
        assert "Submit of gateway-1 could not be handled" in caplog.text
        await c.gateway.send(Submit(job=make_job("job-2")))
        await c.expect(Placed)
        assert "job-1" not in c.scheduler.core.jobs


async def test_what_was_learned_outlives_the_process(tmp_path: Path) -> None:
    file = tmp_path / "lengths.npz"
    kept = {"predictor": "percentile", "predictor_file": str(file)}
    job = JobFeatures((1,), 1000)
    async with Scheduler(config(**kept)) as first:
        assert file.exists(), "so that one that cannot be written ends the start"
        predictor = first.core.experience.predictor
        assert predictor is not None
        for _ in range(5):
            predictor.observe(job, 70)
    async with Scheduler(config(**kept)) as again:
        predictor = again.core.experience.predictor
        assert predictor is not None
        assert predictor.predict(job).p50 == 70
        file.unlink()
    assert not file.exists(), "nothing new was learned"


async def test_a_predictors_file_is_written_while_jobs_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.process.SAVE_SECONDS", 0.0)
    file = tmp_path / "lengths.npz"
    async with Scheduler(config(predictor="percentile", predictor_file=str(file))) as scheduler:
        file.unlink()
        predictor = scheduler.core.experience.predictor
        assert predictor is not None
        predictor.observe(JobFeatures((1,), 1000), 70)
        await until(file.exists)


async def test_a_predictors_file_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "folder" / "lengths.npz"
    kept = {"predictor": "percentile", "predictor_file": str(file)}
    with pytest.raises(ConfigError, match=r"lengths\.npz: No such file or directory"):
        await Scheduler(config(**kept)).start()
    file.parent.mkdir()
    async with Scheduler(config(**kept)) as scheduler:
        predictor = scheduler.core.experience.predictor
        assert predictor is not None
        predictor.observe(JobFeatures((1,), 1000), 70)
        file.unlink()
        file.parent.rmdir()
    assert "what was learned is not saved" in caplog.text


def test_the_scheduler_never_imports_torch() -> None:
    code = "import sys, scheduler.process, transport.tokens; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "False"
