"""A gateway's life: start, serve, drain, stop; what cannot start says why."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import httpx
import pytest

from gateway.process import Gateway, bind, served_name
from packhorse.config import GatewayConfig
from packhorse.errors import ConfigError
from tests.gateway.cluster import FakeCluster
from tests.gateway.conftest import FakedGateway, chat, events
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.usefixtures("no_tasks")


async def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        gateway = Gateway(GatewayConfig(port=port))
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            await gateway.start()
        await gateway.stop()


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.invalid:80"):
        bind("nowhere.invalid", 80)


async def test_a_public_token_address_needs_the_secret_and_a_host() -> None:
    with pytest.raises(ConfigError, match="secret"):
        await Gateway(GatewayConfig(port=0, token_bind="tcp://0.0.0.0:0")).start()
    with pytest.raises(ConfigError, match="advertise"):
        await Gateway(GatewayConfig(port=0, token_bind="tcp://0.0.0.0:0", secret="s")).start()


async def test_a_token_address_that_is_taken_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bound = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        gateway = Gateway(GatewayConfig(port=0, token_bind=bound))
        with pytest.raises(ConfigError, match=bound):
            await gateway.start()
    with pytest.raises(ConfigError, match="no-such-model"):
        await Gateway(GatewayConfig(port=0, model="./no-such-model")).start()


async def test_it_serves_without_a_scheduler_and_says_so() -> None:
    async with (
        Gateway(GatewayConfig(port=0, scheduler="tcp://127.0.0.1:9", served_name="mine")) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as client,
    ):
        assert (await client.get("/v1/models/mine")).status_code == 200
        health = await client.get("/health")
        assert health.status_code == 503
        assert health.json()["missing"] == ["scheduler"]
        response = await client.post("/v1/chat/completions", json=chat(model="mine"))
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "unavailable"


async def test_a_public_host_without_a_key_is_logged(cluster: FakeCluster, caplog: pytest.LogCaptureFixture) -> None:
    async with FakedGateway(GatewayConfig(host="0.0.0.0", port=0), cluster) as gateway:
        assert gateway.url.startswith("http://0.0.0.0:")
    assert "no api_key" in caplog.text


async def refused(url: str) -> None:
    """Returns once no new connection is accepted."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    async with asyncio.timeout(PATIENCE_SECONDS):
        with contextlib.suppress(ConnectionError):
            while True:
                _, writer = await asyncio.open_connection(host, int(port))
                writer.close()
                await asyncio.sleep(0.01)


async def test_open_requests_may_finish(cluster: FakeCluster) -> None:
    cluster.hold = 3
    gateway = FakedGateway(GatewayConfig(port=0, drain_seconds=30), cluster)
    await gateway.start()
    url = gateway.url
    await until(lambda: gateway._service is not None and gateway._service.backend.status is not None)
    async with httpx.AsyncClient() as client:
        asking = asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=chat(stream=True)))
        await until(lambda: gateway.num_open_jobs == 1)
        stopping = asyncio.create_task(gateway.stop())
        await refused(url)
        assert not stopping.done()
        cluster.resume.set()
        assert events((await asking).text)[-1] == "[DONE]"
    await asyncio.wait_for(stopping, PATIENCE_SECONDS)
    assert not cluster.cancelled


@pytest.mark.parametrize("stream", [False, True])
async def test_who_is_not_done_in_time_is_told(cluster: FakeCluster, stream: bool) -> None:
    cluster.hold = 3
    gateway = FakedGateway(GatewayConfig(port=0, drain_seconds=0.1), cluster)
    await gateway.start()
    await until(lambda: gateway._service is not None and gateway._service.backend.status is not None)
    async with httpx.AsyncClient() as client:
        asking = asyncio.create_task(client.post(f"{gateway.url}/v1/chat/completions", json=chat(stream=stream)))
        await until(lambda: cluster.num_held == 1 and cluster.tokens.inbox.empty())
        await asyncio.wait_for(gateway.stop(), PATIENCE_SECONDS)
        response = await asking
    error = events(response.text)[-1]["error"] if stream else response.json()["error"]
    assert response.status_code == (200 if stream else 503)
    assert error["message"] == "the gateway is shutting down"
    assert set(cluster.cancelled) == set(cluster.jobs)
    await gateway.stop()


async def test_wait_lasts_as_long_as_the_server(cluster: FakeCluster) -> None:
    async with FakedGateway(GatewayConfig(port=0), cluster) as gateway:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(gateway.wait(), 0.05)
        assert gateway._server is not None
        gateway._server.should_exit = True
        await asyncio.wait_for(gateway.wait(), PATIENCE_SECONDS)


def test_the_name_of_a_model(tmp_path: object) -> None:
    assert served_name("embedded") == "embedded"
    assert served_name("org/model-1b") == "org/model-1b"
    assert served_name(str(tmp_path)) == str(tmp_path).rsplit("/", 1)[-1]
