"""/v1/completions: every form of prompt, n, logprobs, usage, stop strings; streamed and whole answers are the same."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from model.text import Tokenizer
from tests.gateway.cluster import STATS, TEXT, FakeCluster
from tests.gateway.conftest import completion, events

URL = "/v1/completions"


async def post(client: httpx.AsyncClient, **fields: Any) -> Any:
    response = await client.post(URL, json=completion(**fields))
    assert response.status_code == 200, response.text
    return response.json()


async def stream(client: httpx.AsyncClient, **fields: Any) -> list[Any]:
    response = await client.post(URL, json=completion(stream=True, **fields))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response.text)
    assert chunks.pop() == "[DONE]"
    return chunks


async def test_a_completion(client: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
    body = await post(client, max_tokens=100)
    assert body["object"] == "text_completion"
    assert body["model"] == "embedded"
    [choice] = body["choices"]
    assert choice == {"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop"}
    num_tokens = len(tokenizer.encode(TEXT)) + 1
    usage = body["usage"]
    transfer = usage.pop("kv_transfer")
    num_prompt = len(tokenizer.encode("Once"))
    assert usage == {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_tokens,
        "total_tokens": num_prompt + num_tokens,
    }
    assert transfer == STATS.model_dump(exclude={"prompt_tokens", "completion_tokens", "ship_seconds", "preemptions"})


async def test_the_default_length_is_openais(client: httpx.AsyncClient) -> None:
    body = await post(client)
    assert body["usage"]["completion_tokens"] == 16
    assert body["choices"][0]["finish_reason"] == "length"
    assert TEXT.startswith(body["choices"][0]["text"])


@pytest.mark.parametrize(
    ("prompt", "num_prompts"),
    [("Once", 1), (["Once", "A fox"], 2), ([5, 6, 7], 1), ([[5, 6], [7]], 2), (["Once", [5]], 2)],
)
async def test_forms_of_a_prompt(
    client: httpx.AsyncClient, cluster: FakeCluster, tokenizer: Tokenizer, prompt: Any, num_prompts: int
) -> None:
    body = await post(client, prompt=prompt, n=2, max_tokens=3)
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * num_prompts))
    prompts = [list(job.prompt) for job in cluster.jobs.values()]
    if prompt == "Once":
        assert prompts == [tokenizer.encode("Once")] * 2
    if prompt == [[5, 6], [7]]:
        assert prompts == [[5, 6], [5, 6], [7], [7]]
        assert body["usage"]["prompt_tokens"] == 3
    assert body["usage"]["completion_tokens"] == 3 * 2 * num_prompts
    assert body["usage"]["kv_transfer"]["bytes_shipped"] == 100 * 2 * num_prompts
    assert body["usage"]["kv_transfer"]["decode_worker"] == ["decode-0"] * 2 * num_prompts


async def test_choices_have_seeds_of_their_own(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    await post(client, n=3, seed=7, max_tokens=1)
    assert [job.sampling.seed for job in cluster.jobs.values()] == [7, 8, 9]
    cluster.jobs.clear()
    await post(client, n=3, max_tokens=1)
    assert len({job.sampling.seed for job in cluster.jobs.values()}) == 3
    cluster.jobs.clear()
    await post(client, seed=-1, max_tokens=1)
    assert [job.sampling.seed for job in cluster.jobs.values()] == [2**63 - 1]


async def test_every_sampling_field_reaches_the_job(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    fields = {
        "temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "presence_penalty": -2, "frequency_penalty": 2,
        "repetition_penalty": 1.5, "ignore_eos": True, "stop_token_ids": [9], "max_tokens": 2,
    }  # fmt: skip
    await post(
        client,
        **fields,
        logit_bias={"12": -100, "13": 1.5},
        stop="x",
        seed=3,
        priority=-4,
        logprobs=2,
        user="me",
        cache_salt="mine",
    )
    [job] = cluster.jobs.values()
    expected = fields | {
        "logit_bias": {12: -100, 13: 1.5},
        "stop": ("x",),
        "stop_token_ids": (9,),
        "seed": 3,
        "logprobs": 2,
    }
    assert job.sampling.model_dump() == expected
    assert (job.priority, job.cache_salt) == (-4, "mine")
    assert job.reply_to == cluster.tokens.address


async def test_a_deadline_of_its_own_reaches_every_job(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    await post(client, n=2, max_ttft_seconds=3)
    assert [job.max_ttft_seconds for job in cluster.jobs.values()] == [3.0, 3.0]
    cluster.jobs.clear()
    await post(client, max_ttft_seconds=None)
    assert [job.max_ttft_seconds for job in cluster.jobs.values()] == [None]


async def test_a_tool_pause_reaches_every_job(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    await post(client, n=2, max_tokens=4, tool_pause={"after_tokens": 3, "seconds": 2})
    pauses = [job.tool_pause for job in cluster.jobs.values()]
    assert [(pause.after_tokens, pause.seconds) for pause in pauses if pause is not None] == [(3, 2.0)] * 2


@pytest.mark.parametrize("reverse", [False, True])
async def test_a_stream_adds_up_to_the_whole(client: httpx.AsyncClient, cluster: FakeCluster, reverse: bool) -> None:
    cluster.reverse = reverse
    chunks = await stream(client, max_tokens=100)
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    texts = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(texts) == TEXT
    assert len(texts) > 5
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-2:]] == [None, "stop"]


async def test_the_usage_chunk(client: httpx.AsyncClient) -> None:
    *chunks, last = await stream(client, max_tokens=2, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 2
    assert last["usage"]["kv_transfer"]["prefill_worker"] == "prefill-0"
    quiet = await stream(client, max_tokens=2, stream_options={"include_usage": False})
    assert all("usage" not in chunk for chunk in quiet)


@pytest.mark.parametrize("stop", ["red", "small red", " a small red fox", ["snow", "ll red f"], "O"])
async def test_stop_strings_across_tokens(client: httpx.AsyncClient, stop: Any) -> None:
    stops = [stop] if isinstance(stop, str) else stop
    expected = TEXT[: min(TEXT.find(each) for each in stops)]
    [choice] = (await post(client, stop=stop, max_tokens=100))["choices"]
    assert choice["text"] == expected
    assert choice["finish_reason"] == "stop"
    chunks = await stream(client, stop=stop, max_tokens=100)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_half_a_stop_string_is_shown_at_the_end(client: httpx.AsyncClient) -> None:
    [choice] = (await post(client, stop="snow. The end", max_tokens=100))["choices"]
    assert choice["text"] == TEXT


async def test_a_stop_that_the_worker_missed_cancels_the_job(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    def without_stops(job: Any) -> Any:
        deaf = job.model_copy(update={"sampling": job.sampling.model_copy(update={"stop": ()})})
        return made(deaf)

    made, cluster.outputs = cluster.outputs, without_stops  # type: ignore[method-assign]
    [choice] = (await post(client, stop="small", max_tokens=100))["choices"]
    assert choice["text"] == TEXT[: TEXT.find("small")]
    assert choice["finish_reason"] == "stop"
    assert list(cluster.cancelled.values()) == ["a stop string was found"]


async def test_eos_as_the_first_token_is_a_whole_answer(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    cluster.script = lambda job: []
    body = await post(client)
    assert body["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"]["completion_tokens"] == 1
    [chunk] = await stream(client)
    assert chunk["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]


async def test_a_stop_token_has_no_text(client: httpx.AsyncClient, cluster: FakeCluster, tokenizer: Tokenizer) -> None:
    third = tokenizer.encode(TEXT)[2]
    body = await post(client, stop_token_ids=[third])
    assert body["choices"][0]["text"] == tokenizer.decode(tokenizer.encode(TEXT)[:2])
    assert body["usage"]["completion_tokens"] == 3


async def test_characters_of_several_tokens(
    client: httpx.AsyncClient, cluster: FakeCluster, tokenizer: Tokenizer
) -> None:
    text = "snow \u2603 \U0001f98a fox"
    cluster.script = lambda job: tokenizer.encode(text)
    assert (await post(client, max_tokens=100))["choices"][0]["text"] == text
    chunks = await stream(client, max_tokens=100)
    texts = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(texts) == text
    assert not any("\ufffd" in piece for piece in texts)


async def test_choices_of_a_stream_are_told_apart(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    chunks = await stream(client, prompt=["Once", "A"], n=2, max_tokens=100)
    texts = ["", "", "", ""]
    for chunk in chunks:
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [TEXT] * 4
    order = [chunk["choices"][0]["index"] for chunk in chunks]
    assert order != sorted(order), "the choices come one after the other"


@pytest.mark.parametrize("logprobs", [0, 3])
async def test_logprobs_in_the_legacy_shape(client: httpx.AsyncClient, tokenizer: Tokenizer, logprobs: int) -> None:
    body = await post(client, logprobs=logprobs, max_tokens=100)
    lists = body["choices"][0]["logprobs"]
    num_tokens = body["usage"]["completion_tokens"]
    assert {len(values) for values in lists.values()} == {num_tokens}
    assert "".join(lists["tokens"][:-1]) == TEXT
    assert lists["token_logprobs"] == [-0.5] * num_tokens
    for token, offset in zip(lists["tokens"][:-1], lists["text_offset"][:-1], strict=True):
        assert TEXT[offset : offset + len(token)] == token
    assert {len(top) for top in lists["top_logprobs"]} == {max(1, logprobs)}
    if logprobs:
        assert min(lists["top_logprobs"][0].values()) == -9999.0
    chunks = await stream(client, logprobs=logprobs, max_tokens=100)
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks[:-1]]
    assert chunks[-1]["choices"][0]["logprobs"] is None
    for name, values in lists.items():
        assert [value for each in streamed for value in each[name]] == values


async def test_a_long_prompt_is_tokenized_aside(
    client: httpx.AsyncClient, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, bool] = {}
    encode = tokenizer.encode

    def noted(text: str) -> list[int]:
        threads[text[:3]] = threading.current_thread() is threading.main_thread()
        return encode(text)

    monkeypatch.setattr(tokenizer, "encode", noted)
    response = await client.post(URL, json=completion(prompt="Aside " * 5000))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert (await client.post(URL, json=completion(prompt="fox"))).status_code == 200
    assert (threads["Asi"], threads["fox"]) == (False, True)


async def test_nulls_are_not_given(client: httpx.AsyncClient) -> None:
    nulls = dict.fromkeys(
        ["echo", "suffix", "best_of", "logprobs", "stop", "seed", "n", "temperature", "logit_bias", "user"]
    )
    assert (await post(client, **nulls))["choices"][0]["finish_reason"] == "length"
    assert (await post(client, echo=False, suffix="", best_of=1))["choices"]
