"""Declared tool pauses in whole systems: the same tokens, later; memory is others' meanwhile where the policy gives it back."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.e2e.conftest import MakeSystem, System
from tests.waiting import until
from transport.messages import Job, ToolPause

PROMPT = [5 + i % 900 for i in range(150)]
SECONDS = 1.5


def pausing(s: System, after_tokens: int, seconds: float = SECONDS, max_tokens: int = 40) -> Job:
    job = s.client.job(PROMPT, max_tokens=max_tokens)
    return job.model_copy(update={"tool_pause": ToolPause(after_tokens=after_tokens, seconds=seconds)})


@pytest.mark.parametrize(("policy", "after_tokens"), [("fcfs", 1), ("fcfs", 20), ("lamps", 1), ("lamps", 20)])
async def test_the_same_tokens_after_the_pause(system: MakeSystem, policy: str, after_tokens: int) -> None:
    async with system(scheduler={"policy": policy, "predictor": "none"}) as s:
        expected = [output.token_id for output in await s.client.run(PROMPT, max_tokens=40)]
        job = pausing(s, after_tokens)
        submitted_at = time.monotonic()
        await s.client.submit(job)
        await s.client.tokens(job.job_id, at_least=after_tokens)
        if policy == "lamps":
            await until(lambda: s.decodes[0].load().host_pages_used)
        else:
            await asyncio.sleep(SECONDS / 3)
            assert s.decodes[0].load().host_pages_used == 0
        outputs = await s.client.tokens(job.job_id, at_least=after_tokens + 1)
        assert time.monotonic() - submitted_at > SECONDS
        assert s.decodes[0].load().host_pages_used == 0
        await s.client.end(job.job_id)
        outputs = await s.client.tokens(job.job_id, complete=True)
    assert [output.token_id for output in outputs] == expected


async def test_others_run_in_the_memory_that_is_given_back(system: MakeSystem) -> None:
    async with system(decode={"pool_pages": 3}, scheduler={"policy": "lamps", "predictor": "none"}) as s:
        job = pausing(s, 10, seconds=60.0)  # its 3 pages fill the pool
        await s.client.submit(job)
        await s.client.tokens(job.job_id, at_least=10)
        assert len(await s.client.run(PROMPT, max_tokens=5)) == 5
        assert len(s.client.outputs[job.job_id]) == 10
        await s.client.cancel(job.job_id)


async def test_a_client_may_leave_in_the_pause(system: MakeSystem) -> None:
    """The fixture asks at the end what is still held."""
    for policy in ("fcfs", "lamps"):
        async with system(scheduler={"policy": policy, "predictor": "none"}) as s:
            job = pausing(s, 10, seconds=60.0)
            await s.client.submit(job)
            await s.client.tokens(job.job_id, at_least=10)
            await asyncio.sleep(0.2)
            await s.client.cancel(job.job_id)
