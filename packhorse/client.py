"""A small streaming client of an OpenAI-compatible chat server, for the demo and the terminal chat."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from packhorse.errors import PackhorseError

CONNECT_SECONDS = 5.0
TOKEN_SECONDS = 120.0  # longest silence inside a stream


class ServerError(PackhorseError):
    """The server refused the request, or ended the stream with an error."""

    code = "server_error"


@dataclass(frozen=True)
class Piece:
    """One chunk of a stream: text, the reason why it ended, or (in the last chunk) what it cost."""

    text: str = ""
    finish_reason: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)


def open_client(url: str, api_key: str | None = None) -> httpx.Client:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(TOKEN_SECONDS, connect=CONNECT_SECONDS))


def get_json(client: httpx.Client, path: str) -> Any:
    """What the server has at `path`. Raises ServerError."""
    try:
        answer = client.get(path)
    except httpx.HTTPError as error:
        raise ServerError(f"cannot reach {client.base_url}: {error}") from error
    if answer.status_code != httpx.codes.OK:
        raise ServerError(_message(answer.status_code, answer.text))
    return answer.json()


def first_model(client: httpx.Client) -> str:
    """The name of the first model served. Raises ServerError."""
    return str(get_json(client, "/v1/models")["data"][0]["id"])


def stream_chat(
    client: httpx.Client, model: str, messages: Sequence[Mapping[str, str]], **options: Any
) -> Generator[Piece, None, None]:
    """Pieces of one answer as they come; closing the iterator cancels the request. Raises ServerError.

    `options` are fields of the request: max_tokens, temperature, seed, ...
    """
    body = {"model": model, "messages": list(messages), "stream": True, "stream_options": {"include_usage": True}}
    try:
        with client.stream("POST", "/v1/chat/completions", json=body | options) as response:
            if response.status_code != httpx.codes.OK:
                raise ServerError(_message(response.status_code, response.read().decode(errors="replace")))
            for line in response.iter_lines():
                if line.startswith("data:") and line != "data: [DONE]":
                    yield _piece(json.loads(line.removeprefix("data:")))
    except httpx.HTTPError as error:
        raise ServerError(f"the connection to {client.base_url} broke: {error or type(error).__name__}") from error


def _piece(chunk: Mapping[str, Any]) -> Piece:
    if error := chunk.get("error"):
        raise ServerError(str(error.get("message", error)))
    choice: Mapping[str, Any] = next(iter(chunk.get("choices") or []), {})
    text = (choice.get("delta") or {}).get("content") or ""
    return Piece(text, choice.get("finish_reason"), chunk.get("usage") or {})


def _message(status: int, body: str) -> str:
    try:
        return f"status {status}: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"status {status}: {body[:200]}"
