"""/v1/chat/completions: messages in, messages out, chunk by chunk as OpenAI sends them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from model.text import Tokenizer
from tests.gateway.cluster import TEXT, FakeCluster
from tests.gateway.conftest import chat, events

URL = "/v1/chat/completions"


async def post(client: httpx.AsyncClient, **fields: Any) -> Any:
    response = await client.post(URL, json=chat(**fields))
    assert response.status_code == 200, response.text
    return response.json()


async def stream(client: httpx.AsyncClient, **fields: Any) -> list[Any]:
    response = await client.post(URL, json=chat(stream=True, **fields))
    assert response.status_code == 200, response.text
    chunks = events(response.text)
    assert chunks.pop() == "[DONE]"
    return chunks


async def test_a_chat_completion(client: httpx.AsyncClient) -> None:
    body = await post(client)
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXT, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]


async def test_messages_go_through_the_template(
    client: httpx.AsyncClient, cluster: FakeCluster, tokenizer: Tokenizer
) -> None:
    messages = [
        {"role": "system", "content": "You tell stories."},
        {"role": "user", "content": [{"type": "text", "text": "One "}, {"type": "text", "text": "more"}]},
        {"role": "assistant", "content": "Once", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": ""},
    ]
    await post(client, messages=messages)
    [job] = cluster.jobs.values()
    plain = [("system", "You tell stories."), ("user", "One more"), ("assistant", "Once"), ("user", "")]
    assert list(job.prompt) == tokenizer.chat([{"role": role, "content": text} for role, text in plain])


async def test_the_default_length_is_the_rest_of_the_context(
    client: httpx.AsyncClient, cluster: FakeCluster, tokenizer: Tokenizer
) -> None:
    await post(client)
    [job] = cluster.jobs.values()
    assert job.sampling.max_tokens + len(job.prompt) == tokenizer.max_context


@pytest.mark.parametrize(
    "fields", [{"max_tokens": 3}, {"max_completion_tokens": 3}, {"max_tokens": 3, "max_completion_tokens": 3}]
)
async def test_both_names_of_the_length(client: httpx.AsyncClient, fields: dict[str, int]) -> None:
    assert (await post(client, **fields))["usage"]["completion_tokens"] == 3


async def test_a_stream_is_role_text_finish(client: httpx.AsyncClient) -> None:
    chunks = await stream(client, stream_options={"include_usage": True})
    usage = chunks.pop()
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 5
    assert {chunk["object"] for chunk in [*chunks, usage]} == {"chat.completion.chunk"}
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }
    assert choices[-1] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert {tuple(choice["delta"]) for choice in choices[1:-1]} == {("content",)}
    assert {choice["finish_reason"] for choice in choices[:-1]} == {None}
    assert "".join(choice["delta"]["content"] for choice in choices[:-1]) == TEXT


async def test_each_choice_has_its_role_and_finish(client: httpx.AsyncClient) -> None:
    chunks = await stream(client, n=3, max_tokens=4)
    for index in range(3):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert own[-1]["finish_reason"] == "length"
        assert TEXT.startswith("".join(choice["delta"].get("content", "") for choice in own))


async def test_eos_as_the_first_token(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    cluster.script = lambda job: []
    body = await post(client)
    assert body["choices"][0]["message"]["content"] == ""
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == 1
    role, finish = await stream(client)
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert finish["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("top", [None, 0, 20])
async def test_logprobs(client: httpx.AsyncClient, cluster: FakeCluster, top: int | None) -> None:
    fields = {} if top is None else {"top_logprobs": top}
    body = await post(client, logprobs=True, max_tokens=5, **fields)
    entries = body["choices"][0]["logprobs"]["content"]
    assert len(entries) == 5
    text = body["choices"][0]["message"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == text
    assert {len(entry["top_logprobs"]) for entry in entries} == {top or 0}
    assert all(entry["logprob"] == -0.5 and bytes(entry["bytes"]) == entry["token"].encode() for entry in entries)
    chunks = await stream(client, logprobs=True, max_tokens=5, **fields)
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks[1:-1]]
    assert [entry for each in streamed for entry in each["content"]] == entries


async def test_without_logprobs_none_are_asked_for(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    await post(client, logprobs=False)
    assert [job.sampling.logprobs for job in cluster.jobs.values()] == [None]


async def test_fields_that_ask_for_nothing_are_let_through(client: httpx.AsyncClient) -> None:
    nothing = {
        "response_format": {"type": "text"}, "modalities": ["text"], "tool_choice": "none", "store": False,
        "service_tier": "auto", "tools": None, "user": "me", "safety_identifier": "me", "audio": None,
    }  # fmt: skip
    assert (await post(client, **nothing))["choices"]


async def test_a_role_that_the_template_leaves_out_is_refused(
    client: httpx.AsyncClient, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages %}{% if m['role'] != 'tool' %}{{ m['content'] }}{% endif %}{% endfor %}"
    monkeypatch.setattr(tokenizer._transformers, "chat_template", template)
    messages = [{"role": "user", "content": "Hello"}, {"role": "tool", "content": "42"}]
    response = await client.post(URL, json=chat(messages=messages))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages[1].role"
    messages[1]["role"] = "critic"
    assert (await client.post(URL, json=chat(messages=messages))).status_code == 200


async def test_what_the_template_refuses_is_a_400(
    client: httpx.AsyncClient, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer._transformers, "chat_template", "{{ raise_exception('roles must alternate') }}")
    response = await client.post(URL, json=chat())
    assert response.status_code == 400
    assert "roles must alternate" in response.json()["error"]["message"]
    monkeypatch.setattr(tokenizer._transformers, "chat_template", None)
    response = await client.post(URL, json=chat())
    assert response.status_code == 400
    assert "no chat template" in response.json()["error"]["message"]
