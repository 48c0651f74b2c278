"""The endpoints around the generating ones, and what holds for all: the API key, request ids, the counts."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.service import Service
from packhorse.errors import WorkerLostError
from tests.gateway.cluster import FakeCluster, worker
from tests.gateway.conftest import chat, completion
from tests.waiting import until


async def test_models(client: httpx.AsyncClient) -> None:
    body = (await client.get("/v1/models")).json()
    assert body["object"] == "list"
    [model] = body["data"]
    assert {model["id"], model["object"], model["owned_by"]} == {"embedded", "model", "packhorse"}
    assert model["max_model_len"] == 1024
    assert (await client.get("/v1/models/embedded")).json() == model


async def test_health_says_what_is_missing(client: httpx.AsyncClient, cluster: FakeCluster, service: Service) -> None:
    response = await client.get("/health")
    assert response.status_code == 200
    body = response.json()
    assert body["status"] == "ok"
    assert body["workers"] == {"prefill": 1, "decode": 1}
    assert body["transport"] == ["zmq"]
    cluster.workers = (worker("decode-0", "decode"), worker("decode-1", "decode"))
    await until(lambda: service.backend.status is not None and service.backend.status.workers == cluster.workers)
    response = await client.get("/health")
    assert response.status_code == 503
    assert response.json()["missing"] == ["prefill worker"]
    assert response.json()["workers"] == {"prefill": 0, "decode": 2}


async def test_status_is_the_schedulers(client: httpx.AsyncClient, cluster: FakeCluster, service: Service) -> None:
    assert (await client.get("/status")).json() == cluster.status().model_dump(mode="json")
    service.backend.disconnected()
    response = await client.get("/status")
    assert response.status_code in (200, 503)  # the fake answers again within milliseconds


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        ("Bearer", 401),
        ("Basic s3cret", 401),
        ("Bearer s3cret", 200),
        ("bearer s3cret", 200),
        ("Bearer \xe9", 401),
    ],
)
async def test_the_api_key(service: Service, client: httpx.AsyncClient, header: str | None, status: int) -> None:
    service.api_key = b"s3cret"
    headers = {"authorization": header.encode("latin-1")} if header is not None else {}
    for response in (
        await client.get("/v1/models", headers=headers),
        await client.get("/status", headers=headers),
        await client.post("/v1/chat/completions", json=chat(max_tokens=1), headers=headers),
    ):
        assert response.status_code == status
        assert response.headers["x-request-id"]
        if status == 401:
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
    assert (await client.get("/nowhere")).status_code == 401
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/metrics")).status_code == 200


async def test_the_request_id_is_the_clients_where_it_can_be(client: httpx.AsyncClient) -> None:
    for path in ("/health", "/nowhere", "/v1/models"):
        response = await client.get(path, headers={"x-request-id": "my-id.1"})
        assert response.headers["x-request-id"] == "my-id.1"
    made = [
        (await client.get("/health", headers={"x-request-id": bad})).headers["x-request-id"]
        for bad in ("a b", "x" * 129)
    ]
    assert all(len(request_id) == 32 for request_id in made)
    streamed = await client.post("/v1/chat/completions", json=chat(stream=True), headers={"x-request-id": "s"})
    assert streamed.headers["x-request-id"] == "s"


async def test_a_draining_gateway_takes_no_more(client: httpx.AsyncClient, service: Service) -> None:
    service.draining = True
    response = await client.post("/v1/chat/completions", json=chat())
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "unavailable"
    assert (await client.get("/health")).status_code == 503


async def test_metrics(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    await client.post("/v1/chat/completions", json=chat(max_tokens=5, n=2))
    await client.post("/v1/completions", json=completion(max_tokens=5, stream=True))
    await client.post("/v1/completions", json=completion(nonsense=1))
    cluster.errors = {2: WorkerLostError("gone")}
    await client.post("/v1/completions", json=completion(stream=True))
    await client.get("/nowhere/at/all")
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    seen = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert seen["packhorse_requests_total", "/v1/chat/completions", "200"] == 1
    assert seen["packhorse_requests_total", "/v1/completions", "200"] == 2
    assert seen["packhorse_requests_total", "/v1/completions", "400"] == 1
    assert seen["packhorse_requests_total", "404", "other"] == 1
    assert seen["packhorse_errors_total", "invalid_request"] == 1
    assert seen["packhorse_errors_total", "worker_lost"] == 1
    assert seen["packhorse_errors_total", "unknown_url"] == 1
    assert seen[("packhorse_requests_in_flight",)] == 1  # this very scrape
    assert seen[("packhorse_completion_tokens_total",)] == 17
    assert seen[("packhorse_prompt_tokens_total",)] == 9
    assert seen[("packhorse_bytes_shipped_total",)] == 300
    assert seen[("packhorse_bytes_held_total",)] == 150
    assert seen[("packhorse_raw_bytes_total",)] == 1200
    assert seen[("packhorse_ttft_seconds_count",)] == 4
    assert seen[("packhorse_itl_seconds_count",)] == 17 - 4
    assert seen[("packhorse_jct_seconds_count",)] == 2
    assert seen[("packhorse_queue_seconds_sum",)] == 0.75
    assert seen[("packhorse_ship_seconds_count",)] == 3
    assert seen["packhorse_workers", "decode"] == 1
    assert seen["packhorse_jobs_ended_total", "done"] == 7
    assert seen["packhorse_worker_lease_bytes", "prefill", "prefill-0"] == 2048
    assert seen["packhorse_worker_cached_pages", "decode", "decode-0"] == 5
    assert seen["packhorse_worker_link_bytes_per_second", "prefill", "prefill-0"] == 5e6
    assert seen["packhorse_worker_heartbeat_age_seconds", "decode", "decode-0"] == 0.5
    assert seen[("packhorse_scheduler_up",)] == 1
    assert seen[("packhorse_queue_oldest_seconds",)] == 2.5
    assert seen[("packhorse_preemptions_total",)] == 11
    assert seen["packhorse_predictions_total", "output_tokens"] == 900
    assert seen["packhorse_prediction_error", "bias", "output_tokens"] == -0.25
    assert seen["packhorse_prediction_error", "output_tokens", "p90"] == 0.75
    assert ("packhorse_predictions_total", "transfer") not in seen  # nothing was predicted of it yet


async def test_metrics_that_the_documentation_names_are_there(client: httpx.AsyncClient) -> None:
    page = (Path(__file__).parents[2] / "docs/deploy.md").read_text(encoding="utf-8")
    table = page.partition("Metrics start with `packhorse_`")[2].partition("\n## ")[0]
    first_columns = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    named = {name.partition("{")[0] for column in first_columns for name in re.findall(r"`([^`]+)`", column)}
    rendered = (await client.get("/metrics")).text
    assert len(named) > 15
    assert [name for name in sorted(named) if f"packhorse_{name}" not in rendered] == []


async def test_two_gateways_in_one_process_have_metrics_of_their_own(service: Service) -> None:
    other = Service(backend=service.backend, tokenizer=service.tokenizer, model_name="x", max_body_bytes=1024)
    other.metrics.cancelled.inc()
    assert b"packhorse_cancelled_total 1.0" in other.metrics.render()
    assert b"packhorse_cancelled_total 0.0" in service.metrics.render()
    other.close()


async def test_the_openapi_description_is_whole(client: httpx.AsyncClient) -> None:
    response = await client.get("/openapi.json")
    document = response.json()
    assert set(document["paths"]) >= {
        "/v1/models",
        "/v1/completions",
        "/v1/chat/completions",
        "/health",
        "/metrics",
        "/status",
    }
    schemas = document["components"]["schemas"]
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "messages" in schemas[body["$ref"].rpartition("/")[2]]["properties"]
    references = set(re.findall(r'"\$ref":\s*"#/components/schemas/(\w+)"', response.text))
    assert references <= set(schemas)
    assert "$defs" not in response.text
