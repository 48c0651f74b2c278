"""`packhorse up` as its users meet it: real processes, the openai client, wrong requests, clients that leave, killed workers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from packhorse.launcher import ClusterConfig, LocalCluster
from tests.fakes import held
from transport.messages import Status

STORY = "Once upon a time there was a little girl named Lily. She had a red ball and a dog named Max. " * 10
PAUSED: dict[str, Any] = {
    "model": "embedded", "prompt": "Once", "max_tokens": 100, "stream": True,
    "extra_body": {"ignore_eos": True, "tool_pause": {"after_tokens": 5, "seconds": 600}},
}  # fmt: skip  # of a job that is there until its client leaves
END_SECONDS = 90.0  # a process that starts anew loads torch and the model
STATUS_SECONDS = 1.2  # the gateway asks the scheduler once a second: /status is no older than this


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """One prefill and two decode workers; when it stops, every process that ever ran in it is gone."""
    pids: set[int] = set()
    with LocalCluster(ClusterConfig(port=0, decode=2)) as cluster:
        pids |= {child.pid for child in cluster.processes.values()}
        yield cluster
        pids |= {child.pid for child in cluster.processes.values()}
    assert not [pid for pid in pids if _exists(pid)]


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        yield client
    _until_free(cluster)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _until(condition: Callable[[], Any], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + END_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def _status(cluster: LocalCluster) -> Status:
    return Status.model_validate_json(httpx.get(f"{cluster.url}/status").raise_for_status().text)


def _held(cluster: LocalCluster) -> dict[str, Any]:
    return held(_status(cluster))


def _until_free(cluster: LocalCluster) -> None:
    """Waits until nothing is held anywhere, by a status that was asked for after this call."""
    time.sleep(STATUS_SECONDS)
    _until(lambda: not _held(cluster), lambda: f"still held: {_held(cluster)}")


def _running(cluster: LocalCluster, role: str) -> str:
    """The worker of `role` that holds a job just now."""
    names = [worker.info.worker_id for worker in _status(cluster).workers if worker.info.role == role and worker.jobs]
    return names[0] if names else ""


# ---- the openai client


def test_chat_streams_and_says_what_was_shipped(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="embedded",
        messages=[{"role": "user", "content": STORY}],
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    ) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert len(text) > 40
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 40
    shipped = usage.model_dump()["kv_transfer"]
    assert shipped["prefill_worker"].startswith("prefill-0")
    assert shipped["decode_worker"].startswith("decode-")
    assert 0 < shipped["bytes_shipped"] < shipped["raw_bytes"]


def test_the_same_completion_streamed_and_whole(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "embedded", "prompt": STORY, "max_tokens": 30, "temperature": 0.8, "seed": 5}
    whole = client.completions.create(**request)
    with client.completions.create(**request, stream=True) as stream:
        text = "".join(chunk.choices[0].text for chunk in stream)
    assert text == whole.choices[0].text
    assert len(text) > 10


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    free = client.completions.create(model="embedded", prompt=STORY, max_tokens=60, temperature=0).choices[0].text
    word = free.split()[6]
    stopped = client.completions.create(model="embedded", prompt=STORY, max_tokens=60, temperature=0, stop=f" {word}")
    assert stopped.choices[0].finish_reason == "stop"
    assert free.startswith(stopped.choices[0].text)
    assert word not in stopped.choices[0].text


def test_logprobs_come_for_every_token(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="embedded", messages=[{"role": "user", "content": "Tell me a short story about a cat, hat."}],
        max_tokens=5, temperature=0, logprobs=True, top_logprobs=3, extra_body={"ignore_eos": True},
    )  # fmt: skip
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(token.top_logprobs) for token in logprobs.content] == [3] * 5
    assert all(token.token == token.top_logprobs[0].token for token in logprobs.content)


# ---- what is wrong with a request


@pytest.mark.parametrize(
    ("fields", "status", "code", "named"),
    [
        ({"model": "gpt-9"}, 404, "model_not_found", "gpt-9"),
        ({"prompt": STORY * 8}, 400, "context_length_exceeded", "1024"),
        ({"max_tokens": 100000}, 400, "context_length_exceeded", "100000"),
        ({"temprature": 1}, 400, "invalid_request", "temprature"),
        ({"temperature": "warm"}, 400, "invalid_request", "temperature"),
        ({"echo": True}, 400, "invalid_request", "echo"),
        ({"max_tokens": 0}, 400, "invalid_request", "max_tokens"),
        ({"prompt": []}, 400, "invalid_request", "prompt"),
        ({"prompt": [99999]}, 400, "invalid_request", "99999"),
    ],
)
def test_wrong_requests(
    cluster: LocalCluster, client: openai.OpenAI, fields: dict[str, Any], status: int, code: str, named: str
) -> None:
    request = {"model": "embedded", "prompt": "Once", "max_tokens": 4} | fields
    answer = httpx.post(f"{cluster.url}/v1/completions", json=request, timeout=30.0)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert named in answer.json()["error"]["message"]


def test_a_malformed_body(cluster: LocalCluster) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{cluster.url}/v1/completions", content=b'{"model": ', headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


# ---- clients that leave, workers that die


def test_a_client_that_leaves_frees_its_job(cluster: LocalCluster, client: openai.OpenAI) -> None:
    with client.completions.create(**PAUSED) as stream:
        next(iter(stream))
        _until(lambda: _held(cluster), lambda: "the job was never seen")
    _until_free(cluster)
    _until(lambda: _status(cluster).jobs_total.get("cancelled"), lambda: f"{_status(cluster).jobs_total}")


def test_a_killed_decode_worker_fails_its_streams_and_comes_back(cluster: LocalCluster, client: openai.OpenAI) -> None:
    with client.completions.create(**PAUSED) as stream:
        iterator = iter(stream)
        next(iterator)
        _until(lambda: _running(cluster, "decode"), lambda: "no decode worker runs the job")
        name = _running(cluster, "decode")
        cluster.kill(name.split(".")[0])
        with pytest.raises(openai.APIError, match=f"decode worker {name} was lost"):
            list(iterator)
    assert client.completions.create(model="embedded", prompt="Once", max_tokens=5).choices[0].text
    _until(lambda: _alive(cluster, "decode") == 2, lambda: f"workers: {_status(cluster).workers}")


def test_a_killed_prefill_worker_is_an_error_and_comes_back(cluster: LocalCluster, client: openai.OpenAI) -> None:
    name = next(worker.info.worker_id for worker in _status(cluster).workers if worker.info.role == "prefill")
    cluster.kill(name.split(".")[0])
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model="embedded", prompt=STORY, max_tokens=5)
    assert caught.value.status_code in (502, 503)
    assert "prefill" in caught.value.message
    _until(lambda: _alive(cluster, "prefill") == 1, lambda: f"workers: {_status(cluster).workers}")
    again = client.completions.create(
        model="embedded", prompt=STORY, max_tokens=5, temperature=0, extra_body={"ignore_eos": True}
    )
    assert again.usage is not None
    assert again.usage.completion_tokens == 5


def _alive(cluster: LocalCluster, role: str) -> int:
    ages = [w.heartbeat_age_seconds for w in _status(cluster).workers if w.info.role == role]
    return sum(age < 2.0 for age in ages)
