"""Prompts that begin alike: what the decode worker holds is not sent again, and the tokens are the same as if it were."""

from __future__ import annotations

import asyncio
import itertools
import random
from types import SimpleNamespace

import pytest
import xxhash

from decode.worker import DecodeWorker
from packhorse.config import DecodeConfig
from packhorse.errors import PackhorseError, WorkerLostError
from scheduler.workers import Worker
from tests.e2e.conftest import MakeSystem, System
from tests.fakes import error_of
from tests.gates import gate_of
from tests.waiting import until
from transport.messages import JobStats, Preempt, Resume, TokenOutput


def _prompt(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(5, 4096) for _ in range(length)]


def _page_bytes(s: System, pages: int) -> int:
    """Of that many pages of all layers and KV heads."""
    info = s.prefill.model.info
    return pages * info.layers * info.kv_heads * s.prefill.fmt.page_bytes


def _residual_bytes(s: System, prompt_tokens: int) -> int:
    info, fmt = s.prefill.model.info, s.prefill.fmt
    return fmt.residual_tokens(prompt_tokens) * 2 * info.layers * info.kv_heads * info.head_dim * info.dtype.itemsize


def _stats(outputs: list[TokenOutput]) -> JobStats:
    stats = outputs[-1].stats
    assert stats is not None
    return stats


def _tokens(outputs: list[TokenOutput]) -> list[int]:
    return [output.token_id for output in outputs]


def _known(s: System) -> Worker:
    """The decode worker as the scheduler knows it."""
    worker = s.scheduler.core.workers.get("decode-0")
    assert worker is not None
    return worker


@pytest.mark.parametrize("kv_format", ["raw", "k4v2"])
async def test_a_prompt_that_comes_again_ships_its_residual_alone(kv_format: str, system: MakeSystem) -> None:
    prompt = _prompt(300)  # 4 pages and 40 tokens
    async with system(kv_format=kv_format) as s:
        first = await s.client.run(prompt, max_tokens=100)
        again = await s.client.run(prompt, max_tokens=100)
        assert _tokens(again) == _tokens(first)
        residual = _residual_bytes(s, 300)
        assert (_stats(first).bytes_shipped, _stats(first).bytes_held) == (_page_bytes(s, 4) + residual, 0)
        assert (_stats(again).bytes_shipped, _stats(again).bytes_held) == (residual, _page_bytes(s, 4))


async def test_a_prompt_that_goes_on_ships_what_is_new(system: MakeSystem) -> None:
    prompt = _prompt(300)
    async with system() as s:
        await s.client.run(prompt, max_tokens=20)
        longer = await s.client.run(prompt + _prompt(200, 1), max_tokens=20)
        other = await s.client.run(prompt[:140] + _prompt(200, 2), max_tokens=20)
        shorter = await s.client.run(prompt[:140], max_tokens=20)
        assert [_stats(o).bytes_held for o in (longer, other, shorter)] == [_page_bytes(s, n) for n in (4, 2, 2)]
        assert _stats(longer).bytes_shipped == _page_bytes(s, 3) + _residual_bytes(s, 500)
    async with system(decode={"prefix_cache": False}) as s:
        for prompt_, outputs in ((prompt + _prompt(200, 1), longer), (prompt[:140], shorter)):
            alone = await s.client.run(prompt_, max_tokens=20)
            assert _tokens(alone) == _tokens(outputs)
            assert _stats(alone).bytes_held == 0


async def test_without_the_cache_everything_is_sent_and_nothing_kept(system: MakeSystem) -> None:
    prompt = _prompt(300)
    async with system(decode={"prefix_cache": False}) as s:
        first, again = [await s.client.run(prompt, max_tokens=5) for _ in range(2)]
        assert _stats(again).bytes_shipped == _stats(first).bytes_shipped
        status = await s.client.until_idle()
        assert [worker.load.pages_cached for worker in status.workers] == [0, 0]


async def test_a_salt_keeps_jobs_apart(system: MakeSystem) -> None:
    prompt = _prompt(200)
    async with system() as s:
        for salt, held in (("a", 0), ("b", 0), ("a", 3), ("", 0)):
            job = s.client.job(prompt, max_tokens=5).model_copy(update={"cache_salt": salt})
            await s.client.submit(job)
            stats = await s.client.end(job.job_id)
            assert stats.bytes_held == _page_bytes(s, held)


async def test_two_jobs_of_one_prompt_at_once_share_in_the_end(system: MakeSystem) -> None:
    prompt = _prompt(300)
    async with system() as s:
        alone = await s.client.run(prompt, max_tokens=60)
    async with system() as s:
        jobs = [s.client.job(prompt, max_tokens=60) for _ in range(3)]
        await asyncio.gather(*(s.client.submit(job) for job in jobs))
        await asyncio.gather(*(s.client.end(job.job_id) for job in jobs))
        for job in jobs:
            assert _tokens(await s.client.tokens(job.job_id, complete=True)) == _tokens(alone)
        await s.client.until_idle()
        assert s.decodes[0].load().pages_cached == 4


async def test_pages_of_a_stream_that_was_cancelled_serve_nobody(system: MakeSystem) -> None:
    prompt = _prompt(900)
    async with system(prefill={"chunk_tokens": 64}) as s:
        job = s.client.job(prompt, max_tokens=50)
        gate_of(s.prefill).hold(job.job_id, 256)
        await s.client.submit(job)
        await until(lambda: s.prefill.load().lease_bytes > 0)
        await s.client.cancel(job.job_id)
        await s.client.until_idle()
        assert s.decodes[0].load().pages_cached == 0
        assert _stats(await s.client.run(prompt, max_tokens=5)).bytes_held == 0


async def test_held_pages_stay_while_their_job_is_cancelled_mid_stream(system: MakeSystem) -> None:
    prompt = _prompt(300)
    async with system(prefill={"chunk_tokens": 32}) as s:
        first = await s.client.run(prompt, max_tokens=20)
        job = s.client.job(prompt + _prompt(600, 1), max_tokens=20)
        gate_of(s.prefill).hold(job.job_id, 512)
        await s.client.submit(job)
        await until(lambda: s.prefill.load().lease_bytes > 0)
        await s.client.cancel(job.job_id)
        await s.client.until_idle()
        again = await s.client.run(prompt, max_tokens=20)
        assert _tokens(again) == _tokens(first)
        assert _stats(again).bytes_held == _page_bytes(s, 4)


async def test_under_pressure_cached_pages_make_way(system: MakeSystem) -> None:
    """Capacity is what it was: a job that takes the whole pool finds it free, and then the old prompt is sent again."""
    prompt = _prompt(300)
    async with system(decode={"pool_pages": 8}) as s:
        first = await s.client.run(prompt, max_tokens=30)
        assert (await s.client.until_idle()).workers  # nothing counts as held
        whole = await s.client.run(_prompt(380, 1), max_tokens=136)  # 8 pages
        assert len(whole) == 136
        again = await s.client.run(prompt, max_tokens=30)
        assert _tokens(again) == _tokens(first)
        assert _stats(again).bytes_held == 0
        await s.client.until_idle()
        assert s.decodes[0].load().pages_cached <= 8


async def test_many_prompts_that_begin_alike_in_a_small_pool_say_what_they_would_alone(system: MakeSystem) -> None:
    draw = random.Random(5)
    prompts = [_prompt(200, 7)[: draw.choice([70, 140, 200])] + _prompt(draw.randint(1, 150), i) for i in range(12)]
    async with system(decode={"prefix_cache": False}) as s:
        alone = [_tokens(await s.client.run(prompt, max_tokens=20)) for prompt in prompts]
    async with system(decode={"pool_pages": 14, "max_jobs": 4}, prefill={"chunk_tokens": 100}) as s:
        results = await asyncio.gather(*(s.client.run(prompt, max_tokens=20) for prompt in prompts * 2))
    assert [_tokens(outputs) for outputs in results] == alone * 2
    assert any(_stats(outputs).bytes_held for outputs in results)


async def test_a_preempted_job_with_shared_pages_goes_on_as_before(system: MakeSystem) -> None:
    prompt = _prompt(300)
    async with system() as s:
        expected = _tokens(await s.client.run(prompt, max_tokens=120))
        worker, job = s.decodes[0], s.client.job(prompt, max_tokens=120)
        gate = gate_of(worker)
        gate.hold(job.job_id, 20)
        await s.client.submit(job)
        for number in range(1, 4):
            await s.client.tokens(job.job_id, at_least=20 * number)
            await worker.receive(Preempt(job_id=job.job_id, number=number))
            await until(lambda: worker.load().pages_used == 0)
            gate.hold(job.job_id, 20 * number + 20)
            await worker.receive(Resume(job_id=job.job_id))
        gate.let_go(job.job_id)
        await s.client.end(job.job_id)
        assert _tokens(await s.client.tokens(job.job_id, complete=True)) == expected
        assert _stats(await s.client.run(prompt, max_tokens=5)).bytes_held == _page_bytes(s, 4)


# ---- what the scheduler knows


async def test_the_scheduler_hears_what_is_held_and_forgets_a_worker_that_is_gone(system: MakeSystem) -> None:
    prompt = _prompt(300)
    async with system() as s:
        running = s.client.job(prompt, max_tokens=700)
        gate_of(s.decodes[0]).hold(running.job_id, 20)
        await s.client.submit(running)
        await s.client.tokens(running.job_id)
        await until(lambda: len(_known(s).prefixes) == 4)
        await s.decodes[0].stop()  # the worker dies with a job and its pages
        assert isinstance(await error_of(s.client, running.job_id), WorkerLostError)
        await s.client.until_idle()
        config = s.decodes[0].config
        assert isinstance(config, DecodeConfig)
        async with DecodeWorker(config):
            assert not _known(s).prefixes
            assert _stats(await s.client.run(prompt, max_tokens=5)).bytes_held == 0
            await s.client.until_idle()


async def test_a_worker_that_registers_anew_keeps_its_pages_and_says_so(system: MakeSystem) -> None:
    prompt = _prompt(300)
    async with system() as s:
        await s.client.run(prompt, max_tokens=5)
        await until(lambda: len(_known(s).prefixes) == 4)
        known = _known(s)
        s.decodes[0].agent._forget()
        await until(lambda: s.scheduler.core.workers.get("decode-0") not in (None, known))
        await until(lambda: len(_known(s).prefixes) == 4)
        assert _stats(await s.client.run(prompt, max_tokens=5)).bytes_held == _page_bytes(s, 4)


async def test_a_worker_whose_held_pages_are_wrong_fails_the_job_and_not_its_answer(system: MakeSystem) -> None:
    """Should the count ever be wrong, pages are missing at the end of the stream: nothing is decoded on missing data."""
    async with system() as s:
        started = s.prefill.receive
        s.prefill.agent._handle = lambda message: started(_claim(message, 2))
        with pytest.raises(PackhorseError, match="pages and 0 residuals missing"):
            await s.client.run(_prompt(300), max_tokens=5)


def _claim(message: object, held_pages: int) -> object:
    return message.model_copy(update={"held_pages": held_pages}) if hasattr(message, "held_pages") else message


async def test_pages_of_a_corrupt_stream_serve_nobody(system: MakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, sums = _prompt(300), itertools.count(1)
    right = xxhash.xxh3_64_intdigest

    def fifth_is_wrong(payload: memoryview) -> int:
        return right(payload) ^ (next(sums) == 5)

    async with system() as s:
        monkeypatch.setattr("transport.sender.xxhash", SimpleNamespace(xxh3_64_intdigest=fifth_is_wrong))
        with pytest.raises(PackhorseError, match="checksum does not match"):
            await s.client.run(prompt, max_tokens=5)
        await s.client.until_idle()
        assert s.decodes[0].load().pages_cached == 0
        assert _stats(await s.client.run(prompt, max_tokens=5)).bytes_held == 0
