"""The gateway with the real scheduler and workers behind it, over real sockets, in one process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from decode.worker import DecodeWorker
from gateway.process import Gateway
from packhorse.config import DecodeConfig, GatewayConfig, PrefillConfig, SchedulerConfig
from prefill.worker import PrefillWorker
from scheduler.process import Scheduler
from tests.gateway.conftest import chat, completion, events
from tests.waiting import PATIENCE_SECONDS


@contextlib.asynccontextmanager
async def system(
    secret: str | None = None, *, ends_idle: bool = True
) -> AsyncIterator[tuple[httpx.AsyncClient, Scheduler]]:
    """Ends by asserting that scheduler and workers hold nothing any more."""
    common: dict[str, Any] = {"secret": secret, "model": "embedded", "link": "inproc", "threads": 1}
    async with contextlib.AsyncExitStack() as stack:
        scheduler = await stack.enter_async_context(Scheduler(SchedulerConfig(bind="tcp://127.0.0.1:0", secret=secret)))
        common["scheduler"] = scheduler.address
        gateway = await stack.enter_async_context(
            Gateway(GatewayConfig(port=0, scheduler=scheduler.address, secret=secret, drain_seconds=1))
        )
        await stack.enter_async_context(DecodeWorker(DecodeConfig(worker_id="decode-0", pool_pages=64, **common)))
        await stack.enter_async_context(PrefillWorker(PrefillConfig(worker_id="prefill-0", **common)))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_SECONDS))
        await ready(client)
        yield client, scheduler
        if ends_idle:
            await idle(client)


async def ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await client.get("/health")).status_code != 200:
            await asyncio.sleep(0.05)


async def idle(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            status = (await client.get("/status")).json()
            busy = sum(status["jobs_by_state"].values())
            if not busy and not any(worker["load"]["pages_used"] for worker in status["workers"]):
                return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("secret", [None, "s3cret"])
async def test_a_whole_system(secret: str | None) -> None:
    greedy = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
    async with system(secret) as (client, _):
        whole = (await client.post("/v1/completions", json=completion(prompt="Once upon a time", **greedy))).json()
        text = whole["choices"][0]["text"]
        assert whole["usage"]["completion_tokens"] == 12
        assert whole["usage"]["kv_transfer"]["decode_worker"] == "decode-0"
        assert whole["usage"]["kv_transfer"]["bytes_shipped"] > 0
        streamed = await client.post(
            "/v1/completions", json=completion(prompt="Once upon a time", stream=True, **greedy)
        )
        assert "".join(chunk["choices"][0]["text"] for chunk in events(streamed.text)[:-1]) == text
        both = (
            await client.post("/v1/chat/completions", json=chat(n=2, logprobs=True, top_logprobs=2, **greedy))
        ).json()
        assert [len(choice["logprobs"]["content"]) for choice in both["choices"]] == [12, 12]
        one = (await client.post("/v1/completions", json=completion(max_tokens=1, logprobs=1))).json()
        assert one["usage"]["completion_tokens"] == 1
        assert one["usage"]["kv_transfer"]["decode_worker"] == ""
        assert one["usage"]["kv_transfer"]["bytes_shipped"] == 0


async def test_a_client_that_leaves_frees_its_pages() -> None:
    async with system() as (client, _):
        body = chat(stream=True, ignore_eos=True, max_tokens=900)
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            assert await anext(response.aiter_text())
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/chat/completions", json=body | {"stream": False}, timeout=0.1)


async def test_a_lost_scheduler_ends_a_stream_with_an_error() -> None:
    async with system(ends_idle=False) as (client, scheduler):
        body = chat(stream=True, ignore_eos=True, max_tokens=900)
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            parts = response.aiter_text()
            text = await anext(parts)
            await scheduler.stop()
            async with asyncio.timeout(PATIENCE_SECONDS):
                async for part in parts:
                    text += part
        last = events(text)[-1]
        assert last["error"]["code"] == "unavailable"
        assert (await client.get("/health")).status_code == 503
        async with Scheduler(SchedulerConfig(bind=scheduler.address)):
            await ready(client)
            await idle(client)
            assert (await client.post("/v1/chat/completions", json=chat(max_tokens=3))).status_code == 200
            await idle(client)
