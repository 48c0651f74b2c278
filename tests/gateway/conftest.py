"""A gateway before a fake cluster: in this process (`client`), or behind a real port (`gateway`)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from gateway.app import create_app
from gateway.backend import Backend
from gateway.process import Gateway
from gateway.service import Service
from model.text import Tokenizer, load_tokenizer
from packhorse.config import GatewayConfig
from tests.gateway.cluster import FakeCluster
from tests.waiting import until

FAST = {"poll_seconds": 0.02, "silence_seconds": 0.2, "late_seconds": 0.1}


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer("embedded")


@pytest.fixture
def cluster(tokenizer: Tokenizer) -> FakeCluster:
    return FakeCluster(tokenizer)


@pytest_asyncio.fixture
async def backend(cluster: FakeCluster, no_tasks: None) -> AsyncIterator[Backend]:
    """Started, and the scheduler has answered. Ends by asserting that nothing is left open."""
    backend = Backend(cluster, cluster.tokens, **FAST)
    await backend.start()
    await until(lambda: backend.status is not None)
    yield backend
    await backend.stop()
    assert backend.num_open == 0
    assert not cluster.open
    assert not cluster.tokens.open


@pytest_asyncio.fixture
async def service(backend: Backend, tokenizer: Tokenizer) -> AsyncIterator[Service]:
    service = Service(backend=backend, tokenizer=tokenizer, model_name="embedded", max_body_bytes=64 * 1024)
    yield service
    service.close()
    assert backend.num_open == 0, "a request left a job open"


@pytest_asyncio.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


class FakedGateway(Gateway):
    """The whole process, with a fake cluster at the other end of its wires."""

    def __init__(self, config: GatewayConfig, cluster: FakeCluster) -> None:
        super().__init__(config)
        self._cluster = cluster

    def _backend(self) -> Backend:
        return Backend(self._cluster, self._cluster.tokens, **FAST)


@pytest_asyncio.fixture
async def gateway(cluster: FakeCluster, no_tasks: None) -> AsyncIterator[Gateway]:
    async with FakedGateway(GatewayConfig(port=0, drain_seconds=0.2), cluster) as gateway:
        async with httpx.AsyncClient() as client:
            while (await client.get(f"{gateway.url}/health")).status_code != 200:
                await asyncio.sleep(0.01)
        yield gateway
        assert gateway.num_open_jobs == 0


def events(text: str) -> list[Any]:
    """The data of server-sent events: objects, and "[DONE]" as it is. Fails on anything that is not an event."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block[6:] if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "embedded", "messages": [{"role": "user", "content": "A story?"}]} | fields


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": "embedded", "prompt": "Once"} | fields
