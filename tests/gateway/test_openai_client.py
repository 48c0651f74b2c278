"""The official Python client against a gateway over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio

from gateway.process import Gateway
from packhorse.errors import UnavailableError, WorkerLostError
from tests.gateway.cluster import TEXT, FakeCluster
from tests.waiting import until

MESSAGES = [{"role": "user", "content": "A story?"}]


@pytest_asyncio.fixture
async def client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0) as client:
        yield client


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["embedded"]
    assert (await client.models.retrieve("embedded")).owned_by == "packhorse"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("org/other")


async def test_chat(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="embedded", messages=MESSAGES, n=2, logprobs=True, top_logprobs=2, max_completion_tokens=8
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    choice = answer.choices[1]
    assert TEXT.startswith(choice.message.content)
    assert choice.finish_reason == "length"
    assert len(choice.logprobs.content) == 8
    assert [top.logprob for top in choice.logprobs.content[0].top_logprobs] == [-0.5, -1.5]
    assert answer.usage.completion_tokens == 16
    assert answer.usage.kv_transfer["decode_worker"] == ["decode-0", "decode-0"]
    again = await client.chat.completions.create(
        model="embedded", messages=[*MESSAGES, choice.message, *MESSAGES], max_tokens=1
    )
    assert again.choices[0].message.role == "assistant"


async def test_chat_streamed(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="embedded", messages=MESSAGES, stream=True, stream_options={"include_usage": True}, logprobs=True
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == TEXT
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.kv_transfer["prefill_worker"] == "prefill-0"
    assert chunks[1].choices[0].logprobs.content[0].logprob == -0.5


async def test_completions(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="embedded", prompt=["Once", "A"], logprobs=2, max_tokens=4)
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    logprobs = answer.choices[1].logprobs
    assert "".join(logprobs.tokens) == answer.choices[1].text
    assert logprobs.text_offset[0] == 0
    assert len(logprobs.top_logprobs) == len(logprobs.token_logprobs) == 4
    stream = await client.completions.create(model="embedded", prompt=[5, 6], stream=True, max_tokens=100, stop="red")
    assert "".join([chunk.choices[0].text async for chunk in stream]) == TEXT[: TEXT.find("red")]


async def test_the_synchronous_client(gateway: Gateway) -> None:
    def ask() -> str:
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any") as client:
            whole = client.completions.create(model="embedded", prompt="Once", max_tokens=100).choices[0].text
            stream = client.completions.create(model="embedded", prompt="Once", max_tokens=100, stream=True)
            assert "".join(chunk.choices[0].text for chunk in stream) == whole
            return whole

    assert await asyncio.to_thread(ask) == TEXT


async def test_errors(client: openai.AsyncOpenAI, cluster: FakeCluster) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature=3") as refused:
        await client.completions.create(model="embedded", prompt="Once", temperature=3)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        await client.chat.completions.create(model="embedded", messages=MESSAGES, tools=[])
    cluster.errors = {0: UnavailableError("no prefill worker")}
    with pytest.raises(openai.InternalServerError, match="no prefill worker"):
        await client.completions.create(model="embedded", prompt="Once", stream=True)


async def test_an_error_within_a_stream_is_raised(client: openai.AsyncOpenAI, cluster: FakeCluster) -> None:
    cluster.errors = {3: WorkerLostError("decode-0 is gone")}
    texts: list[str] = []

    async def ask() -> None:
        async for chunk in await client.completions.create(model="embedded", prompt="Once", stream=True):
            texts.append(chunk.choices[0].text)

    with pytest.raises(openai.APIError, match="decode-0 is gone") as failed:
        await ask()
    assert texts
    assert failed.value.code == "worker_lost"


async def test_a_failure_that_may_pass_is_tried_again(gateway: Gateway, cluster: FakeCluster) -> None:
    cluster.errors = {0: UnavailableError("restarting")}
    cluster.fails = lambda job: len(cluster.jobs) == 1
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=1) as client:
        answer = await client.completions.create(model="embedded", prompt="Once")
        assert answer.choices[0].text
    assert len(cluster.jobs) == 2


async def test_closing_a_stream_cancels(client: openai.AsyncOpenAI, cluster: FakeCluster) -> None:
    cluster.hold = 3
    stream = await client.chat.completions.create(model="embedded", messages=MESSAGES, stream=True)
    assert await anext(aiter(stream))
    await stream.close()
    await until(lambda: set(cluster.cancelled) == set(cluster.jobs))
