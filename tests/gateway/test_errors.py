"""Every refusal: its status, OpenAI's format, and a message that names the field, its value and what is allowed."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from gateway.body import read_json
from gateway.service import Service
from model.text import Tokenizer
from packhorse.errors import (
    BodyTimeoutError,
    ContextLengthError,
    DeadlineError,
    OverloadedError,
    PackhorseError,
    WorkerLostError,
)
from tests.gateway.cluster import FakeCluster
from tests.gateway.conftest import chat, completion, events
from tests.waiting import until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def error_of(response: httpx.Response, status: int, code: str = "invalid_request") -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    error: dict[str, Any] = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] == code, error
    assert error["message"]
    assert "pydantic" not in response.text
    assert "Input should" not in response.text
    assert response.headers["x-request-id"]
    return error


EITHER = [
    ({"temperature": 2.5}, "temperature", "temperature=2.5: must be at most 2"),
    ({"temperature": -1}, "temperature", "temperature=-1: must be at least 0"),
    ({"temperature": "hot"}, "temperature", "temperature='hot': must be a number"),
    ({"temperature": True}, "temperature", "temperature=True: must be a number"),
    ({"top_p": 0}, "top_p", "top_p=0: must be greater than 0"),
    ({"top_p": 1.1}, "top_p", "top_p=1.1: must be at most 1"),
    ({"n": 0}, "n", "n=0: must be at least 1"),
    ({"n": 129}, "n", "n=129: must be at most 128"),
    ({"n": 1.0}, "n", "n=1.0: must be a whole number"),
    ({"max_tokens": 0}, "max_tokens", "max_tokens=0: must be at least 1"),
    ({"max_tokens": "many"}, "max_tokens", "max_tokens='many': must be a whole number"),
    ({"presence_penalty": 3}, "presence_penalty", "must be at most 2"),
    ({"frequency_penalty": -3}, "frequency_penalty", "must be at least -2"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4 strings"),
    ({"stop": ""}, "stop", "none of them empty"),
    ({"stop": [1]}, "stop", "must be a string or a list of strings"),
    ({"seed": "x"}, "seed", "seed='x': must be a whole number"),
    ({"seed": 2**63}, "seed", "must be less than"),
    ({"logit_bias": {"fox": 1}}, "logit_bias", "token ids as its keys"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias", "token ids of this model are 0 to 4095"),
    ({"logit_bias": {"1": 101}}, "logit_bias[1]", "must be at most 100"),
    ({"logit_bias": [1]}, "logit_bias", "must be an object"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "token ids of this model are 0 to 4095"),
    ({"top_k": -1}, "top_k", "must be at least 0"),
    ({"min_p": 2}, "min_p", "must be at most 1"),
    ({"repetition_penalty": 0}, "repetition_penalty", "must be greater than 0"),
    ({"stream": "yes"}, "stream", "stream='yes': must be true or false"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed with stream=true"),
    ({"stream": True, "stream_options": {"nonsense": 1}}, "stream_options.nonsense", "unknown field: stream_options.nonsense"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation", "not supported"),
    ({"stream": True, "stream_options": 3}, "stream_options", "must be an object"),
    ({"nonsense": 1}, "nonsense", "unknown field: nonsense"),
    ({"nonsense": None, "more": 2}, "nonsense", "unknown fields: nonsense, more"),
    ({"model": 3}, "model", "model=3: must be a string"),
    ({"model": None}, "model", "model is required"),
    ({"user": 3}, "user", "must be a string"),
    ({"max_ttft_seconds": 0}, "max_ttft_seconds", "max_ttft_seconds=0: must be greater than 0"),
    ({"max_ttft_seconds": -1.5}, "max_ttft_seconds", "max_ttft_seconds=-1.5: must be greater than 0"),
    ({"max_ttft_seconds": "2"}, "max_ttft_seconds", "max_ttft_seconds='2': must be a number"),
    ({"tool_pause": 3}, "tool_pause", "must be an object"),
    ({"tool_pause": {"seconds": 1}}, "tool_pause.after_tokens", "tool_pause.after_tokens is required"),
    ({"tool_pause": {"after_tokens": 0, "seconds": 1}}, "tool_pause.after_tokens", "must be at least 1"),
    ({"tool_pause": {"after_tokens": 1, "seconds": 0}}, "tool_pause.seconds", "must be greater than 0"),
    ({"tool_pause": {"after_tokens": 1, "seconds": 601}}, "tool_pause.seconds", "must be at most 600"),
    ({"tool_pause": {"after_tokens": 1, "seconds": 1, "tool": "x"}}, "tool_pause.tool", "unknown field: tool_pause.tool"),
    ({"max_tokens": 9, "tool_pause": {"after_tokens": 9, "seconds": 1}}, "tool_pause.after_tokens", "must be less than max_tokens, 9"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "message"), EITHER)
async def test_fields_of_both_endpoints(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str, message: str
) -> None:
    for url, body in ((CHAT, chat(**fields)), (COMPLETIONS, completion(**fields))):
        error = error_of(await client.post(url, json=body), 400)
        assert message in error["message"]
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": ""}, "prompt", "must not be empty"),
        ({"prompt": []}, "prompt", "must not be empty"),
        ({"prompt": ["a", ""]}, "prompt", "must not be empty"),
        ({"prompt": [[]]}, "prompt", "must not be empty"),
        ({"prompt": None}, "prompt", "prompt is required"),
        ({"prompt": {"a": 1}}, "prompt", "must be a string, a list of strings"),
        ({"prompt": [1.5]}, "prompt", "must be a string, a list of strings"),
        ({"prompt": [True]}, "prompt", "must be a string, a list of strings"),
        ({"prompt": [4096]}, "prompt", "token id 4096; token ids of this model are 0 to 4095"),
        ({"prompt": [[1], [-1]]}, "prompt", "token id -1"),
        ({"prompt": ["a"] * 3, "n": 50}, "prompt", "150 choices; at most 128"),
        ({"echo": True}, "echo", "echo=True is not supported; allowed: False"),
        ({"suffix": "x"}, "suffix", "suffix='x' is not supported"),
        ({"best_of": 2}, "best_of", "best_of=2 is not supported; allowed: n, which is 1"),
        ({"logprobs": 6}, "logprobs", "must be at most 5"),
        ({"logprobs": True}, "logprobs", "must be a whole number"),
        ({"messages": []}, "messages", "unknown field: messages"),
    ],
)
async def test_fields_of_completions(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str, message: str
) -> None:
    error = error_of(await client.post(COMPLETIONS, json=completion(**fields)), 400)
    assert message in error["message"]
    assert error["param"] == param


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"messages": []}, "messages", "must have at least 1 entries"),
        ({"messages": None}, "messages", "messages is required"),
        ({"messages": "Hello"}, "messages", "must be a list"),
        ({"messages": ["Hello"]}, "messages[0]", "must be an object"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "messages[0].content is required"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "messages[0].role is required"),
        ({"messages": [{"role": "The User", "content": "x"}]}, "messages[0].role", "'The User': must match ^"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "must be a string or a list of parts"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "only 'text' is supported"),
        ({"messages": [{"role": "user", "content": [{"type": "{x}"}]}]}, "messages[0].content", "type '{x}'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content", "must have a string in 'text'"),
        ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "messages[0].name", "messages[0].name is not supported"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood", "unknown field: messages[0].mood"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls", "is not supported"),
        ({"tools": []}, "tools", "tools is not supported"),
        ({"functions": [{}]}, "functions", "functions is not supported"),
        ({"audio": {}}, "audio", "audio is not supported"),
        ({"modalities": ["text", "audio"]}, "modalities", "allowed: ['text']"),
        ({"response_format": {"type": "json_object"}}, "response_format", "allowed: {'type': 'text'}"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "reasoning_effort is not supported"),
        ({"store": True}, "store", "store=True is not supported; allowed: False"),
        ({"logprobs": 3}, "logprobs", "must be true or false"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "must be at most 20"),
        ({"top_logprobs": 2}, "top_logprobs", "only allowed with logprobs=true"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "max_tokens=3 and max_completion_tokens=4 differ"),
        ({"echo": True}, "echo", "unknown field: echo"),
        ({"prompt": "x"}, "prompt", "unknown field: prompt"),
    ],
)  # fmt: skip
async def test_fields_of_chat(client: httpx.AsyncClient, fields: dict[str, Any], param: str, message: str) -> None:
    error = error_of(await client.post(CHAT, json=chat(**fields)), 400)
    assert message in error["message"]
    assert error["param"] == param


async def test_a_long_value_is_shown_in_part(client: httpx.AsyncClient) -> None:
    error = error_of(await client.post(COMPLETIONS, json=completion(temperature="x" * 5000)), 400)
    assert len(error["message"]) < 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "must be a JSON object, not list"),
        (b'{"temperature": NaN}', "NaN is not a JSON number"),
        (b'{"model": "\xff"}', "not valid JSON"),
        (b"[" * 60_000, "not valid JSON"),
        (b'{"model": "embedded", "prompt": "\\ud800"}', "lone surrogate"),
        (b'{"model": "embedded", "prompt": "a", "temperature": 1e999}', "temperature=inf"),
        (
            b'{"model": "embedded", "prompt": "a", "max_ttft_seconds": 1e999}',
            "max_ttft_seconds=inf: must be a finite number",
        ),
    ],
)
async def test_malformed_bodies(client: httpx.AsyncClient, content: bytes, message: str) -> None:
    response = await client.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
    assert message in error_of(response, 400)["message"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large(client: httpx.AsyncClient, chunked: bool) -> None:
    content = json.dumps(completion(prompt="x" * 70_000)).encode()

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 1000):
            yield content[start : start + 1000]

    response = await client.post(
        COMPLETIONS, content=parts() if chunked else content, headers={"content-type": "application/json"}
    )
    assert "65536" in error_of(response, 413, "body_too_large")["message"]


async def test_a_body_that_does_not_arrive() -> None:
    async def nothing() -> Any:
        await asyncio.sleep(60)

    headers = [(b"content-type", b"application/json")]
    with pytest.raises(BodyTimeoutError):
        await read_json(Request({"type": "http", "headers": headers, "method": "POST"}, nothing), 100, 0.02)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonl", ""])
async def test_the_content_type_must_be_json(client: httpx.AsyncClient, kind: str) -> None:
    response = await client.post(COMPLETIONS, content=b"{}", headers={"content-type": kind})
    error_of(response, 415, "unsupported_content_type")


async def test_a_charset_is_allowed(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    response = await client.post(COMPLETIONS, content=json.dumps(completion()), headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/nowhere", 404, "unknown_url"),
        ("POST", "/v1/embeddings", 404, "unknown_url"),
        ("GET", "/docs", 404, "unknown_url"),
    ],
)
async def test_paths_and_methods(client: httpx.AsyncClient, method: str, path: str, status: int, code: str) -> None:
    error = error_of(await client.request(method, path), status, code)
    assert path in error["message"]


async def test_the_wrong_model(client: httpx.AsyncClient) -> None:
    for response in (
        await client.post(CHAT, json=chat(model="gpt-4o")),
        await client.post(COMPLETIONS, json=completion(model="gpt-4o")),
        await client.get("/v1/models/gpt-4o"),
    ):
        error = error_of(response, 404, "model_not_found")
        assert "'gpt-4o'" in error["message"]
        assert error["param"] == "model"


async def test_prompt_and_completion_must_fit_the_context(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    response = await client.post(COMPLETIONS, json=completion(prompt=[5] * 1000, max_tokens=25))
    error = error_of(response, 400, "context_length_exceeded")
    for number in ("1024", "1000", "25", "1025"):
        assert number in error["message"]
    error_of(await client.post(COMPLETIONS, json=completion(prompt=[5] * 1024)), 400, "context_length_exceeded")
    error_of(await client.post(CHAT, json=chat(max_tokens=1024)), 400, "context_length_exceeded")
    assert not cluster.jobs
    ok = await client.post(COMPLETIONS, json=completion(prompt=[5] * 1000, max_tokens=24, ignore_eos=True))
    assert ok.status_code == 200
    assert (await client.post(COMPLETIONS, json=completion(prompt=[5] * 1020))).status_code == 200


FAILURES = [
    (OverloadedError("the queue is full"), 429, "rate_limit_error"),
    (OverloadedError("it would be late", retry_after_seconds=17.2), 429, "rate_limit_error"),
    (WorkerLostError("decode-0 is gone"), 502, "server_error"),
    (DeadlineError("no worker in time"), 504, "server_error"),
    (ContextLengthError("too long for any worker", param="messages"), 400, "invalid_request_error"),
    (PackhorseError("a fault"), 500, "server_error"),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("failure", "status", "kind"), FAILURES)
async def test_a_failure_before_the_first_token_has_its_status(
    client: httpx.AsyncClient, cluster: FakeCluster, failure: PackhorseError, status: int, kind: str, streamed: bool
) -> None:
    cluster.errors = {0: failure}
    response = await client.post(CHAT, json=chat(stream=streamed, n=2))
    error = error_of(response, status, failure.code)
    assert error["message"] == failure.message
    assert error["type"] == kind
    assert error["param"] == failure.param
    assert response.headers["x-should-retry"] == str(failure.retryable).lower()
    retry_after = str(math.ceil(failure.retry_after_seconds)) if failure.retryable else None
    assert response.headers.get("retry-after") == retry_after


async def test_a_failure_after_the_first_token_fails_a_whole_answer(
    client: httpx.AsyncClient, cluster: FakeCluster
) -> None:
    cluster.errors = {3: WorkerLostError("decode-0 is gone")}
    error_of(await client.post(CHAT, json=chat()), 502, "worker_lost")


@pytest.mark.parametrize(("url", "body"), [(CHAT, chat(n=2)), (COMPLETIONS, completion(n=2))])
async def test_a_failure_within_a_stream_is_an_event(
    client: httpx.AsyncClient, cluster: FakeCluster, url: str, body: dict[str, Any]
) -> None:
    cluster.errors = {3: WorkerLostError("decode-0 is gone")}
    cluster.fails = lambda job: job.job_id.endswith("-0")
    response = await client.post(url, json=body | {"stream": True})
    assert response.status_code == 200
    *chunks, last = events(response.text)
    assert all("error" not in chunk for chunk in chunks)
    assert last == {
        "error": {"message": "decode-0 is gone", "type": "server_error", "param": None, "code": "worker_lost"}
    }
    [other] = cluster.cancelled
    assert other.endswith("-1")


async def test_a_lost_scheduler_within_a_stream(
    client: httpx.AsyncClient, cluster: FakeCluster, service: Service
) -> None:
    cluster.hold = 4
    asking = asyncio.create_task(client.post(CHAT, json=chat(stream=True)))
    await until(lambda: bool(cluster.jobs))
    cluster.answers = False
    *_, last = events((await asking).text)
    assert last["error"]["code"] == "unavailable"
    assert "silent" in last["error"]["message"]
    error_of(await client.post(CHAT, json=chat()), 503, "unavailable")
    health = await client.get("/health")
    assert health.status_code == 503
    assert health.json()["missing"] == ["scheduler"]
    cluster.answers, cluster.hold = True, None
    await until(lambda: service.backend.status is not None)
    assert (await client.post(CHAT, json=chat(max_tokens=2))).status_code == 200


async def test_a_fault_of_ours_is_a_500_that_tells_nothing(
    client: httpx.AsyncClient, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> Any:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(tokenizer, "encode", fault)
    error = error_of(await client.post(COMPLETIONS, json=completion()), 500, "internal_error")
    assert "secret" not in error["message"]
    monkeypatch.undo()
    monkeypatch.setattr("gateway.choice.Choice.push", fault)
    for stream in (False, True):
        response = await client.post(COMPLETIONS, json=completion(stream=stream))
        assert "secret" not in error_of(response, 500, "internal_error")["message"]


async def test_a_worker_that_leaves_out_logprobs(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    make = cluster.output
    bare: Any = lambda *args, **fields: make(*args, **fields).model_copy(update={"logprob": None})  # noqa: E731
    cluster.output = bare  # type: ignore[method-assign]
    error_of(await client.post(COMPLETIONS, json=completion(logprobs=1)), 502, "transport_error")
