"""A client that leaves, over a real socket: its jobs are cancelled in whatever state, and nothing stays open."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import httpx
import pytest

from gateway.process import Gateway
from tests.gateway.cluster import FakeCluster
from tests.gateway.conftest import chat, completion, events
from tests.waiting import PATIENCE_SECONDS, until


def raw_request(gateway: Gateway, path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: {gateway.address}\r\ncontent-type: application/json\r\n"
    return head.encode() + f"content-length: {len(content)}\r\n\r\n".encode() + content


@contextlib.asynccontextmanager
async def connection(gateway: Gateway) -> Any:
    host, _, port = gateway.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


REQUESTS = [("/v1/chat/completions", chat(n=2)), ("/v1/completions", completion(n=2, max_tokens=50))]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("hold", [0, 3])
@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_leaving_cancels(
    gateway: Gateway, cluster: FakeCluster, path: str, body: dict[str, Any], hold: int, stream: bool
) -> None:
    """Before the first token (hold 0: no header was sent yet) and after some, streamed and not."""
    cluster.hold = hold
    async with connection(gateway) as (reader, writer):
        writer.write(raw_request(gateway, path, body | {"stream": stream}))
        await until(lambda: gateway.num_open_jobs == 2)
        if stream and hold:
            assert (await asyncio.wait_for(reader.readline(), PATIENCE_SECONDS)).startswith(b"HTTP/1.1 200")
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.readline(), 0.05)
        assert not cluster.cancelled
    await until(lambda: gateway.num_open_jobs == 0)
    assert set(cluster.cancelled) == set(cluster.jobs)
    async with httpx.AsyncClient() as client:
        metrics = (await client.get(f"{gateway.url}/metrics")).text
    assert "packhorse_cancelled_total 1.0" in metrics
    status = 200 if stream and hold else 499
    assert f'packhorse_requests_total{{endpoint="{path}",status="{status}"}} 1.0' in metrics
    assert "packhorse_requests_in_flight 1.0" in metrics


async def test_leaving_within_the_body_submits_nothing(gateway: Gateway, cluster: FakeCluster) -> None:
    async with connection(gateway) as (_, writer):
        writer.write(raw_request(gateway, "/v1/completions", completion())[:-5])
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.05)
    assert not cluster.jobs


async def test_a_job_that_is_over_is_not_cancelled(gateway: Gateway, cluster: FakeCluster) -> None:
    async with httpx.AsyncClient() as client:
        for stream in (False, True):
            response = await client.post(f"{gateway.url}/v1/chat/completions", json=chat(stream=stream))
            assert response.status_code == 200
    await until(lambda: gateway.num_open_jobs == 0)
    assert not cluster.cancelled


async def test_tokens_leave_as_they_come(gateway: Gateway, cluster: FakeCluster) -> None:
    """The first tokens are with the client while the cluster still holds the next one back."""
    cluster.hold = 3
    async with (
        httpx.AsyncClient() as client,
        client.stream("POST", f"{gateway.url}/v1/chat/completions", json=chat(stream=True)) as response,
    ):
        text = ""
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for part in response.aiter_text():
                text += part
                if len(events(text)) == 4:  # the role and three tokens
                    cluster.resume.set()
        assert text.endswith("data: [DONE]\n\n")


async def test_many_streams_at_once(gateway: Gateway, cluster: FakeCluster) -> None:
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:
        url = f"{gateway.url}/v1/chat/completions"
        answers = await asyncio.gather(*(client.post(url, json=chat(stream=True)) for _ in range(100)))
    texts = {
        "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in events(answer.text)[:-1])
        for answer in answers
    }
    assert len(texts) == 1
