"""/v1/jobs: how the jobs of a completion were scheduled, and what comes instead when that is not known."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from gateway.backend import Backend
from gateway.service import Service
from packhorse.errors import OverloadedError, UnavailableError
from tests.gateway.cluster import FakeCluster
from tests.gateway.conftest import chat, completion
from tests.waiting import until


async def test_a_completions_id_leads_to_its_jobs(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", json=completion(n=2, max_tokens=3))
    completion_id = response.json()["id"]
    assert response.headers["x-completion-id"] == completion_id
    body = (await client.get(f"/v1/jobs/{completion_id}")).json()
    assert body["object"] == "list"
    assert [job["job_id"] for job in body["data"]] == [f"{completion_id}-0", f"{completion_id}-1"]
    assert body["data"][0]["object"] == "job"
    assert (body["data"][0]["decode_worker"], body["data"][0]["why"]) == ("decode-0", "free")
    [second] = (await client.get(f"/v1/jobs/{completion_id}-1")).json()["data"]
    assert second == body["data"][1]


async def test_an_error_names_its_completion_too(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    cluster.errors = {0: OverloadedError("9 jobs are queued; the limit is 9")}
    response = await client.post("/v1/chat/completions", json=chat(stream=True))
    assert response.status_code == 429
    [job] = (await client.get(f"/v1/jobs/{response.headers['x-completion-id']}")).json()["data"]
    assert job["job_id"] in cluster.jobs


async def test_an_unknown_job_is_a_404_that_names_it(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/jobs/cmpl-nobody")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "job_not_found"
    assert "'cmpl-nobody'" in response.json()["error"]["message"]


async def test_the_newest_jobs(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/jobs")).json()["data"] == []
    await client.post("/v1/completions", json=completion(n=3, max_tokens=1))
    assert len((await client.get("/v1/jobs", params={"last": 2})).json()["data"]) == 2
    assert len((await client.get("/v1/jobs")).json()["data"]) == 3


@pytest.mark.parametrize("last", ["0", "1001", "-1", "many", "1e2", "", "²", "99999999999"])
async def test_a_wrong_count_is_a_400(client: httpx.AsyncClient, last: str) -> None:
    response = await client.get("/v1/jobs", params={"last": last})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "last"
    assert "1 to 1000" in response.json()["error"]["message"]


async def test_a_scheduler_that_does_not_answer_is_a_503(
    client: httpx.AsyncClient, cluster: FakeCluster, backend: Backend
) -> None:
    cluster.answers = False
    response = await client.get("/v1/jobs/cmpl-1")
    assert response.status_code == 503
    await until(lambda: backend.status is None)
    assert (await client.get("/v1/jobs")).status_code == 503
    assert vars(vars(backend)["_questions"])["_waiting"] == {}


async def test_a_lost_scheduler_fails_questions_at_once(backend: Backend, cluster: FakeCluster) -> None:
    cluster.answers = False
    asked = asyncio.create_task(backend.explain("cmpl-1"))
    await asyncio.sleep(0)
    backend.disconnected()
    with pytest.raises(UnavailableError, match="connection to the scheduler broke"):
        await asked


async def test_equal_questions_share_an_answer_and_late_ones_change_nothing(
    service: Service, backend: Backend, cluster: FakeCluster
) -> None:
    first, second = await asyncio.gather(backend.explain(newest=1), backend.explain(newest=1))
    assert first == second
    assert (await backend.explain("x")).jobs == ()


async def test_the_routes_are_described(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert {"/v1/jobs", "/v1/jobs/{job_id}"} <= paths.keys()
