"""Preemption in whole systems: the same tokens as without it, short jobs before long ones, nothing lost whoever leaves."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from scheduler.jobs import TrackedJob
from tests.e2e.conftest import MakeSystem
from tests.gates import gate_of
from tests.waiting import until
from transport.messages import Preempt, Resume

LONG = [5 + i % 900 for i in range(200)]
SHORT = [7 + i % 300 for i in range(70)]


async def test_a_job_that_was_stopped_again_and_again_says_the_same(system: MakeSystem) -> None:
    async with system() as s:
        expected = [output.token_id for output in await s.client.run(LONG, max_tokens=150)]
        worker, job = s.decodes[0], s.client.job(LONG, max_tokens=150)
        gate = gate_of(worker)
        for number in range(1, 6):
            gate.hold(job.job_id, 20 * number)
            await (worker.receive(Resume(job_id=job.job_id)) if number > 1 else s.client.submit(job))
            await s.client.tokens(job.job_id, at_least=20 * number)
            await worker.receive(Preempt(job_id=job.job_id, number=number))
            await until(lambda: (worker.load().pages_used, worker.load().residuals_used) == (0, 0))
            load = worker.load()
            assert load.host_pages_used > 0
            generated = load.generated[job.job_id]
            await s.client.tokens(job.job_id, at_least=generated)
            await asyncio.sleep(0.1)
            assert len(s.client.outputs[job.job_id]) == generated
        gate.let_go(job.job_id)
        await worker.receive(Resume(job_id=job.job_id))
        await s.client.end(job.job_id)
        outputs = await s.client.tokens(job.job_id, complete=True)
    assert [output.token_id for output in outputs] == expected
    assert [output.index for output in outputs] == list(range(150))


async def test_a_short_job_takes_the_place_of_a_long_one_and_gives_it_back(system: MakeSystem) -> None:
    async with system(decode={"pool_pages": 6}, scheduler={"policy": "srpt-oracle", "predictor": "none"}) as s:
        alone = [output.token_id for output in await s.client.run(LONG, max_tokens=190)]
        long = s.client.job(LONG, max_tokens=190)  # its 6 pages fill the pool
        gate = gate_of(s.decodes[0])
        gate.hold(long.job_id, 100)
        await s.client.submit(long)
        await s.client.tokens(long.job_id, at_least=5)
        short = s.client.job(SHORT, max_tokens=10)
        await s.client.submit(short)
        await s.client.end(short.job_id)
        assert len(s.client.outputs[long.job_id]) < 190
        gate.let_go(long.job_id)
        await s.client.end(long.job_id)
        outputs = await s.client.tokens(long.job_id, complete=True)
    assert [output.token_id for output in outputs] == alone


async def test_cancelled_and_finished_in_any_order_nothing_is_left(system: MakeSystem) -> None:
    """The fixture asks at the end what is still held, pages in host memory included."""
    draw = random.Random(8)
    async with system(decode={"pool_pages": 6, "max_jobs": 2}, scheduler={"policy": "packhorse"}) as s:
        jobs = []
        for _ in range(16):
            job = s.client.job(LONG[: draw.randint(60, 200)], max_tokens=draw.choice([4, 60, 180]))
            jobs.append(job)
            await s.client.submit(job)
            await asyncio.sleep(draw.random() * 0.05)
        cancelled = draw.sample(jobs, 6)
        for job in cancelled:
            await asyncio.sleep(draw.random() * 0.1)
            await s.client.cancel(job.job_id)
        for job in jobs:
            if job not in cancelled:
                await s.client.end(job.job_id)
                tokens = await s.client.tokens(job.job_id, complete=True)
                assert len(tokens) == job.sampling.max_tokens
        await s.client.until_idle()
        load = s.decodes[0].load()
        assert (load.jobs, load.pages_used, load.residuals_used, load.host_pages_used) == (0, 0, 0, 0)


async def _until_gone_on(job: TrackedJob) -> None:
    """Until the scheduler has heard that the job went beyond what it had when it was last dropped: before, it is not dropped again."""
    had = len(job.replay.tokens) if job.replay is not None else 0
    await until(lambda: job.progress.generated >= had + 5)


@pytest.mark.parametrize("kv_format", ["raw", "k4v2"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "presence_penalty": 0.5, "seed": 5, "logprobs": 1}])
async def test_a_job_that_was_dropped_again_and_again_says_the_same(
    system: MakeSystem, kv_format: str, sampling: dict[str, Any]
) -> None:
    """Without host memory every long job is dropped for a short one, and goes on on whatever worker has room."""
    config: dict[str, Any] = {"pool_pages": 6, "host_bytes": 0, "dtype": "float32"}
    scheduling = {"policy": "srpt-oracle", "predictor": "none", "heartbeat_seconds": 0.05}
    async with system(kv_format=kv_format, decode=config, scheduler=scheduling) as s:
        alone = await s.client.run(LONG, max_tokens=190, **sampling)
        long = s.client.job(LONG, max_tokens=190, **sampling)  # its 6 pages fill the pool
        gate = gate_of(s.decodes[0])
        gate.hold(long.job_id, 40)
        await s.client.submit(long)
        await s.client.tokens(long.job_id)
        tracked = s.scheduler.core.jobs[long.job_id]
        for held_at in (40, 80):
            gate.hold(long.job_id, held_at)
            await _until_gone_on(tracked)
            short = s.client.job(SHORT, max_tokens=10)
            await s.client.submit(short)
            await s.client.end(short.job_id)
            assert len(s.client.outputs[long.job_id]) < 190
        gate.let_go(long.job_id)
        stats = await s.client.end(long.job_id)
        outputs = await s.client.tokens(long.job_id, complete=True)
        (told,) = s.scheduler.core.decisions.named(long.job_id)
    assert [output.index for output in outputs] == list(range(190)), "none is missing, and none came twice"
    assert [output.token_id for output in outputs] == [output.token_id for output in alone]
    assert [output.logprob for output in outputs] == [output.logprob for output in alone]
    assert (stats.preemptions, stats.completion_tokens, told.preemptions) == (2, 190, 2)
    assert [eviction.way for eviction in told.evictions] == ["drop", "drop"]
    first, last = alone[-1].stats, outputs[-1].stats
    assert first is not None
    assert last is not None
    assert last.bytes_shipped + last.bytes_held == 3 * (first.bytes_shipped + first.bytes_held)
    assert (stats.bytes_shipped, stats.raw_bytes) == (last.bytes_shipped, 3 * first.raw_bytes)


async def test_a_dropped_job_may_go_on_elsewhere_or_be_cancelled(system: MakeSystem) -> None:
    config: dict[str, Any] = {"pool_pages": 6, "host_bytes": 0}
    async with system(num_decode=2, decode=config, scheduler={"policy": "srpt-oracle", "predictor": "none"}) as s:
        alone = [output.token_id for output in await s.client.run(LONG, max_tokens=190)]
        longs = [s.client.job(LONG, max_tokens=190) for _ in range(3)]
        for job in longs[:2]:
            await s.client.submit(job)
            await s.client.tokens(job.job_id, at_least=5)
        await s.client.submit(longs[2])
        shorts = [s.client.job(SHORT, max_tokens=20) for _ in range(4)]
        for job in shorts:
            await s.client.submit(job)
        await s.client.cancel(longs[0].job_id)
        for job in [*longs[1:], *shorts]:
            await s.client.end(job.job_id)
        for job in longs[1:]:
            tokens = await s.client.tokens(job.job_id, complete=True)
            assert [output.token_id for output in tokens] == alone
