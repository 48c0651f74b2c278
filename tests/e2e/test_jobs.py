"""Jobs through live workers: first-token rules, cancelling in every state, lost workers, seeds; and nothing held afterwards."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from typing import Any

import pytest

from decode.held import State
from decode.worker import DecodeWorker
from packhorse.config import DecodeConfig
from packhorse.errors import ContextLengthError, JobCancelledError, PackhorseError, UnavailableError, WorkerLostError
from tests.e2e.conftest import MakeSystem, System
from tests.fakes import error_of
from tests.gates import gate_of
from tests.waiting import PATIENCE_SECONDS, until
from transport.messages import Job, Reserve
from transport.sender import PageSender


def _prompt(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(5, 4096) for _ in range(length)]


async def _state(s: System, state: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (await s.client.status()).jobs_by_state.get(state):
            await asyncio.sleep(0.005)


async def held(s: System, job: Job, prompt_tokens: int | None = None) -> str:
    """Submits a job that will not end by itself: it is held amid its prompt, or after token 10, until it is taken away."""
    if prompt_tokens is not None:
        gate_of(s.prefill).hold(job.job_id, prompt_tokens)
    else:
        gate_of(s.decodes[0]).hold(job.job_id, 10)
    return await s.client.submit(job)


# ---- the whole way


@pytest.mark.parametrize("link", ["inproc", "tcp", "zmq", pytest.param("ucx", marks=pytest.mark.ucx)])
async def test_every_link_carries_a_job(link: str, system: MakeSystem) -> None:
    if link == "ucx":
        pytest.importorskip("ucxx", reason="ucxx is not installed")
    prompt = _prompt(300)
    async with system() as s:
        expected = await s.client.run(prompt, max_tokens=80)
    async with system(link=link) as s:
        outputs = await s.client.run(prompt, max_tokens=80)
        placed = next(iter(s.client.placed.values()))
    assert [o.token_id for o in outputs] == [o.token_id for o in expected]
    assert [o.index for o in outputs] == list(range(80))
    stats = outputs[-1].stats
    assert stats is not None
    assert (stats.prompt_tokens, stats.completion_tokens) == (300, 80)
    assert (placed.prefill_worker, placed.decode_worker) == (stats.prefill_worker, stats.decode_worker)
    fmt = s.prefill.fmt
    residual = fmt.residual_tokens(300) * 2 * fmt.head_dim * fmt.dtype.itemsize
    assert stats.bytes_shipped == 6 * 2 * (fmt.num_pages(300) * fmt.page_bytes + residual)
    assert stats.raw_bytes == 6 * 2 * 2 * 64 * 300 * 2


async def test_many_jobs_over_two_decode_workers(system: MakeSystem) -> None:
    async with system(num_decode=2) as s:
        prompts = [_prompt(5 + 37 * i, seed=i) for i in range(8)]
        all_outputs = await asyncio.gather(*(s.client.run(prompt, max_tokens=20) for prompt in prompts))
        assert all(len(outputs) == 20 for outputs in all_outputs)
        assert {placed.decode_worker for placed in s.client.placed.values()} == {"decode-0", "decode-1"}


async def test_a_secret_guards_every_plane(system: MakeSystem) -> None:
    for link in ("tcp", "zmq"):
        async with system(link=link, secret="a long enough secret") as s:
            assert len(await s.client.run(_prompt(100), max_tokens=4)) == 4


async def test_a_seed_gives_the_same_tokens_in_any_company(system: MakeSystem) -> None:
    prompt = _prompt(120)
    async with system() as s:
        alone = await s.client.run(prompt, max_tokens=40, temperature=1.0, seed=11)
        others = [s.client.run(_prompt(30 + i, i), max_tokens=40, temperature=1.0, seed=i) for i in range(5)]
        together, *_ = await asyncio.gather(s.client.run(prompt, max_tokens=40, temperature=1.0, seed=11), *others)
        other_seed = await s.client.run(prompt, max_tokens=40, temperature=1.0, seed=12)
    assert [o.token_id for o in together] == [o.token_id for o in alone]
    assert [o.token_id for o in other_seed] != [o.token_id for o in alone]


# ---- token 1


async def test_one_token_needs_no_decode_worker(system: MakeSystem) -> None:
    async with system(num_decode=0) as s:
        (output,) = await s.client.run(_prompt(200), max_tokens=1, logprobs=3)
    assert output.finish_reason == "length"
    assert output.logprob is not None
    assert len(output.top_logprobs) == 3
    assert output.stats is not None
    assert (output.stats.bytes_shipped, output.stats.decode_worker) == (0, "")


async def test_token_1_has_logprobs_and_the_rest_too(system: MakeSystem) -> None:
    async with system() as s:
        outputs = await s.client.run(_prompt(20), max_tokens=3, logprobs=2)
    assert all(o.logprob is not None and len(o.top_logprobs) == 2 for o in outputs)
    assert all(o.logprob == o.top_logprobs[0].logprob for o in outputs)  # greedy: the chosen token is the likeliest


@pytest.mark.parametrize("how", ["eos", "stop_token_ids", "stop"])
async def test_a_first_token_that_ends_the_job_ships_nothing(how: str, system: MakeSystem) -> None:
    prompt = _prompt(40)  # no page closes: whatever leaves would be the residual
    async with system() as s:
        (first,) = await s.client.run(prompt, max_tokens=1)
        if how == "eos":
            sampling = {"logit_bias": {4: 100.0}, "ignore_eos": False}
        elif how == "stop_token_ids":
            sampling = {"stop_token_ids": (first.token_id,)}
        else:
            sampling = {"stop": (s.prefill.tokenizer.token_text(first.token_id),)}
        (output,) = await s.client.run(prompt, max_tokens=50, **sampling)
        status = await s.client.until_idle()
    assert output.finish_reason == "stop"
    assert (output.stop_string is not None) == (how == "stop")
    assert output.stats is not None
    assert (output.stats.bytes_shipped, output.stats.decode_worker) == (0, "")
    assert sum(worker.load.bytes_shipped for worker in status.workers) == 0


# ---- ends before the end


async def test_cancel_while_queued(system: MakeSystem) -> None:
    async with system(decode={"pool_pages": 8}) as s:
        running = await held(s, s.client.job(_prompt(20), max_tokens=500))
        await s.client.tokens(running)
        queued = await s.client.submit(s.client.job(_prompt(20), max_tokens=500))
        await _state(s, "queued")
        await s.client.cancel(queued)
        await s.client.cancel(running)
        await s.client.until_idle()
    assert not s.client.outputs[queued]


async def test_cancel_while_prefilling(system: MakeSystem) -> None:
    async with system(prefill={"chunk_tokens": 1}) as s:
        job = await held(s, s.client.job(_prompt(600), max_tokens=100), prompt_tokens=50)
        await _state(s, "prefilling")
        await s.client.cancel(job)
        await s.client.until_idle()
    assert not s.client.outputs[job]


async def test_cancel_while_decoding(system: MakeSystem) -> None:
    async with system() as s:
        job = await held(s, s.client.job(_prompt(100), max_tokens=900))
        await s.client.tokens(job, at_least=3)
        await s.client.cancel(job)
        await s.client.until_idle()
    assert len(s.client.outputs[job]) < 900


async def test_cancel_at_random_moments(system: MakeSystem) -> None:
    rng = random.Random(3)
    async with system(num_decode=2) as s:
        for round_ in range(3):
            jobs = [
                await s.client.submit(s.client.job(_prompt(rng.randrange(1, 400), i), max_tokens=60)) for i in range(8)
            ]
            for job in rng.sample(jobs, k=6):
                await asyncio.sleep(rng.random() * 0.05 * (round_ + 1))
                await s.client.cancel(job)
            await s.client.until_idle()


async def test_a_job_that_fits_nowhere_fails_at_once(system: MakeSystem) -> None:
    async with system(decode={"pool_pages": 2}) as s:
        job = await s.client.submit(s.client.job(_prompt(300), max_tokens=20))
        assert isinstance(await error_of(s.client, job), ContextLengthError)


async def test_no_decode_worker_is_an_error(system: MakeSystem) -> None:
    async with system(num_decode=0) as s:
        job = await s.client.submit(s.client.job(_prompt(30), max_tokens=20))
        error = await error_of(s.client, job)
    assert isinstance(error, UnavailableError)
    assert "decode" in error.message


async def test_a_decode_worker_that_leaves_fails_its_jobs_and_may_come_back(system: MakeSystem) -> None:
    async with system() as s:
        job = await held(s, s.client.job(_prompt(100), max_tokens=900))
        await s.client.tokens(job, at_least=3)
        await s.decodes[0].stop()
        error = await error_of(s.client, job)
        assert isinstance(error, WorkerLostError)
        assert "decode-0" in error.message
        await s.client.until_idle()
        config = s.decodes[0].config
        assert isinstance(config, DecodeConfig)
        async with DecodeWorker(config):
            assert len(await s.client.run(_prompt(100), max_tokens=5)) == 5
            await s.client.until_idle()


async def test_a_prefill_worker_that_leaves_fails_its_jobs(system: MakeSystem) -> None:
    async with system(prefill={"chunk_tokens": 1}) as s:
        job = await held(s, s.client.job(_prompt(600), max_tokens=100), prompt_tokens=50)
        await _state(s, "prefilling")
        await s.prefill.stop()
        error = await error_of(s.client, job)
        assert isinstance(error, WorkerLostError)
        assert "prefill-0" in error.message


async def test_a_scheduler_that_restarts_finds_empty_workers(system: MakeSystem) -> None:
    async with system() as s:
        job = await held(s, s.client.job(_prompt(100), max_tokens=900))
        await s.client.tokens(job, at_least=3)
        bind = s.scheduler.address
        s.scheduler_stopped = True
        await s.scheduler.stop()
        await until(lambda: s.decodes[0].load().jobs == 0)
        config = s.scheduler.config.model_copy(update={"bind": bind})
        async with type(s.scheduler)(config):
            await until(lambda: s.decodes[0].agent.registered and s.prefill.agent.registered)
            assert len(await s.client.run(_prompt(100), max_tokens=5)) == 5
            await s.client.until_idle()


async def test_a_worker_that_was_given_up_has_let_go_of_all_before_it_takes_a_new_job(
    system: MakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler counts it as empty as soon as it has registered anew; a step of its old job is still under way then."""
    async with system(decode={"pool_pages": 4}, scheduler={"shed": False}) as s:
        decode, step_may_end = s.decodes[0], threading.Event()
        step_may_end.set()
        gate_of(decode).hold("old", 10)
        job = s.client.job(_prompt(100), max_tokens=100).model_copy(update={"job_id": "old"})
        await s.client.submit(job)
        await s.client.tokens("old", at_least=5)
        waits = asyncio.create_task(s.client.run(_prompt(100, seed=1), max_tokens=100))
        await _state(s, "queued")
        forward, handle, came = decode.model.forward, vars(decode.agent)["_handle"], asyncio.Event()

        def slow(*args: Any) -> Any:
            assert step_may_end.wait(PATIENCE_SECONDS)
            return forward(*args)

        async def heard(message: Any) -> None:
            if isinstance(message, Reserve):
                came.set()
            await handle(message)

        step_may_end.clear()
        monkeypatch.setattr(decode.model, "forward", slow)
        monkeypatch.setattr(decode.agent, "_handle", heard)
        gate_of(decode).hold("old", 1000)
        await s.scheduler._send(s.scheduler.core.unreachable(b"decode-0", time.monotonic()))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await came.wait()
        await asyncio.sleep(0)
        step_may_end.set()
        assert len(await waits) == 100
        assert (await error_of(s.client, "old")).code == "worker_lost"


async def test_a_broken_step_fails_its_jobs_and_the_worker_lives(
    system: MakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with system() as s:
        forward = s.decodes[0].model.forward
        monkeypatch.setattr(s.decodes[0].model, "forward", lambda *_: 1 / 0)
        job = await s.client.submit(s.client.job(_prompt(100), max_tokens=20))
        error = await error_of(s.client, job)
        assert isinstance(error, PackhorseError)
        assert "division by zero" in error.message
        monkeypatch.setattr(s.decodes[0].model, "forward", lambda *args: forward(*args) * float("nan"))
        job = await s.client.submit(s.client.job(_prompt(100), max_tokens=20))
        assert "NaN" in (await error_of(s.client, job)).message
        monkeypatch.setattr(s.decodes[0].model, "forward", forward)
        assert len(await s.client.run(_prompt(100), max_tokens=5)) == 5


async def test_a_job_that_fails_and_is_released_at_once_leaves_once(system: MakeSystem) -> None:
    """Tokens of many steps that a gateway does not take are reported one by one, and the client leaves at the same time."""
    broken: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: broken.append(context))
    async with system() as s:
        worker, job = s.decodes[0], s.client.job(_prompt(100), max_tokens=900)
        await held(s, job)
        await s.client.tokens(job.job_id, at_least=2)  # token 1 is the prefill worker's, and may be before the pages
        for _ in range(2):
            worker.fail_gateway(job.reply_to, PackhorseError("takes no tokens"))
        await worker.drop(job.job_id, JobCancelledError("left"))
        assert worker.load().residuals_used == 0
        assert "takes no tokens" in (await error_of(s.client, job.job_id)).message
    gc.collect()
    assert not broken


async def test_a_job_that_is_released_in_mid_stream_is_told_to_its_sender_at_once(
    system: MakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with system() as s:
        worker = s.decodes[0]
        monkeypatch.setattr(
            worker.agent, "send", lambda message: None
        )  # the scheduler would release a job unknown to it
        address = next(known.info.data_address for known in s.scheduler.core.workers.of_role("decode"))
        assert address is not None
        sender = await PageSender.connect(address, "test-sender", worker.layout)
        job = s.client.job(range(200), max_tokens=8)
        await worker.receive(Reserve(job=job, pages=4, prefill_worker="test-sender"))
        stream = sender.open(job.job_id)
        page = worker.layout.kv_heads * worker.layout.page_bytes
        stream.put_pages(0, 0, bytes(page), 1)
        await until(lambda: worker._jobs[job.job_id].state is State.RECEIVING)
        await worker.drop(job.job_id, JobCancelledError("nobody waits"))
        await until(lambda: stream.error is not None)
        assert stream.error.message == "nobody waits"
        assert not sender.closed
        await sender.close()
        monkeypatch.undo()
