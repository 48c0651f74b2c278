"""One request to an OpenAI-compatible server, streamed, with the time of every chunk.

Works with any server: a missing usage chunk makes it count chunks, a missing [DONE] is accepted after a finish_reason.
This file knows nothing of schedules, concurrency or statistics.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from bench.record import RequestRecord
from bench.sse import EventTooLargeError, events
from bench.workload import PlannedRequest
from packhorse.errors import ConfigError

Endpoint = Literal["completions", "chat"]
CONNECT_SECONDS = 10.0
_PATHS = {"completions": "/completions", "chat": "/chat/completions"}


@dataclass(frozen=True)
class Target:
    """The server, and what every request to it has in common. `base_url` ends in /v1."""

    base_url: str
    model: str
    endpoint: Endpoint = "completions"
    ignore_eos: bool = False
    temperature: float = 0.0
    timeout_seconds: float = 600.0
    max_ttft_seconds: float | None = None  # an extension of Packhorse

    def body(self, request: PlannedRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.max_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.max_ttft_seconds is not None:
            body["max_ttft_seconds"] = self.max_ttft_seconds
        if self.endpoint == "chat":
            return body | {"messages": [{"role": "user", "content": request.prompt}]}
        return body | {"prompt": request.prompt}


def base_url(url: str) -> str:
    """`url` with /v1 at its end; raises ConfigError where it is not http(s)://host."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"url={url!r} is not http://host[:port] or https://host[:port]", param="url")
    plain = url.rstrip("/")
    return plain if plain.endswith("/v1") else plain + "/v1"


def open_client(api_key: str | None = None) -> httpx.AsyncClient:
    """A client with no limit on connections; the time of a whole request is limited by `send`."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    return httpx.AsyncClient(
        headers=headers, limits=limits, timeout=httpx.Timeout(None, connect=CONNECT_SECONDS), trust_env=False
    )


async def first_model(client: httpx.AsyncClient, url: str) -> str:
    """The first model that the server lists; raises ConfigError saying why there is none."""
    try:
        reply = await client.get(f"{url}/models", timeout=CONNECT_SECONDS)
        reply.raise_for_status()
        return str(reply.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise ConfigError(f"{url}/models names no model ({reason}); is the server up? Else give --model") from error


async def send(
    client: httpx.AsyncClient, target: Target, request: PlannedRequest, record: RequestRecord, now: Callable[[], float]
) -> None:
    """Sends `request` and fills `record`; every way to fail ends up there, only cancellation is raised."""
    record.sent = now()
    try:
        async with asyncio.timeout(target.timeout_seconds):
            await _stream(client, target, request, record, now)
    except TimeoutError:
        record.failed("timeout", f"not done after {target.timeout_seconds:g} s")
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        record.failed("connect", f"{type(error).__name__}: {error}")
    except (httpx.HTTPError, httpx.StreamError) as error:
        record.failed("dropped", f"{type(error).__name__}: {error}")
    except EventTooLargeError as error:
        record.failed("bad_stream", str(error))
    finally:
        record.finished = now()
        _settle_tokens(record)


def _settle_tokens(record: RequestRecord) -> None:
    if record.completion_tokens == 0 and record.chunk_times:
        record.completion_tokens, record.tokens_counted = len(record.chunk_times), True


async def _stream(
    client: httpx.AsyncClient, target: Target, request: PlannedRequest, record: RequestRecord, now: Callable[[], float]
) -> None:
    url = target.base_url + _PATHS[target.endpoint]
    async with client.stream("POST", url, json=target.body(request)) as reply:
        if reply.status_code != 200:
            text = (await reply.aread()).decode("utf-8", "replace")
            record.failed(f"http_{reply.status_code}", _error_message(text))
            return
        complete = await _take_events(reply, record, now)
    if record.status == "failed":
        return
    if not complete and record.finish_reason is None:
        record.failed("dropped", "the stream ended with neither a finish_reason nor [DONE]")
    elif not record.chunk_times and not record.completion_tokens:
        record.failed("empty", "status 200 and a stream without a token")
    else:
        record.status = "ok"


async def _take_events(reply: httpx.Response, record: RequestRecord, now: Callable[[], float]) -> bool:
    """Reads events until [DONE] (True), the end of the stream, or a failure."""
    async with aclosing(events(reply.aiter_bytes())) as stream:
        async for data in stream:
            if data == b"[DONE]":
                return True
            _take_event(data, record, now())
            if record.status == "failed":
                return False
    return False


def _error_message(text: str) -> str:
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return text[:500]


def _take_event(data: bytes, record: RequestRecord, at: float) -> None:
    try:
        event = json.loads(data)
        if not isinstance(event, dict):
            raise ValueError(f"an event is a {type(event).__name__}, not an object")
        if event.get("error"):
            record.failed("error_event", _error_message(data.decode("utf-8", "replace")))
            return
        _take_choices(event.get("choices") or [], record, at)
        _take_usage(event, record)
    except (ValueError, AttributeError, TypeError) as error:
        record.failed("bad_stream", f"{error}: {data[:200]!r}")


def _take_choices(choices: list[dict[str, Any]], record: RequestRecord, at: float) -> None:
    for choice in choices:
        delta = choice.get("delta") or {}
        text = choice.get("text") or delta.get("content") or delta.get("reasoning_content") or ""
        record.finish_reason = choice.get("finish_reason") or record.finish_reason
        if text:
            record.chunk_times.append(at)
        if text or (choice.get("finish_reason") and record.first_token is None):
            record.first_token = at if record.first_token is None else record.first_token
            record.last_token = at


def _take_usage(event: dict[str, Any], record: RequestRecord) -> None:
    usage = event.get("usage")
    if isinstance(usage, dict):
        record.prompt_tokens = usage.get("prompt_tokens", record.prompt_tokens)
        record.completion_tokens = usage.get("completion_tokens") or record.completion_tokens
    transfer = event.get("kv_transfer") or (usage.get("kv_transfer") if isinstance(usage, dict) else None)
    if isinstance(transfer, dict):
        record.kv_transfer = transfer


def run_clock() -> Callable[[], float]:
    """A clock that starts at 0 now."""
    start = time.perf_counter()
    return lambda: time.perf_counter() - start
