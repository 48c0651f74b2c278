"""The streaming client: text, usage, and errors of every kind as ServerError."""

from __future__ import annotations

import json

import httpx
import pytest

from packhorse.client import Piece, ServerError, first_model, stream_chat


def client(*lines: str, status: int = 200) -> httpx.Client:
    """A client whose server answers everything with these lines."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content or "{}"))
        return httpx.Response(status, text="\n\n".join(lines) + "\n\n")

    asked.clear()
    return httpx.Client(transport=httpx.MockTransport(answer), base_url="http://test")


asked: list[dict[str, object]] = []
DELTA = 'data: {"choices": [{"delta": {"content": "Once"}, "finish_reason": null}]}'
LAST = 'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}'
USAGE = 'data: {"choices": [], "usage": {"completion_tokens": 1}}'


def test_pieces_of_a_stream() -> None:
    with client(DELTA, ": a comment", LAST, USAGE, "data: [DONE]") as server:
        pieces = list(stream_chat(server, "m", [{"role": "user", "content": "hi"}], max_tokens=3))
    assert pieces == [Piece("Once"), Piece("", "stop"), Piece(usage={"completion_tokens": 1})]
    assert asked[0]["max_tokens"] == 3
    assert asked[0]["stream_options"] == {"include_usage": True}


def test_an_error_event_ends_the_stream() -> None:
    with client(DELTA, 'data: {"error": {"message": "worker lost"}}') as server:
        pieces = stream_chat(server, "m", [])
        assert next(pieces).text == "Once"
        with pytest.raises(ServerError, match="worker lost"):
            next(pieces)


@pytest.mark.parametrize(
    ("body", "said"),
    [('{"error": {"message": "no such model"}}', "status 404: no such model"), ("<html>", "status 404: <html>")],
)
def test_a_refusal_carries_the_servers_message(body: str, said: str) -> None:
    with client(body, status=404) as server, pytest.raises(ServerError, match=said):
        next(stream_chat(server, "m", []))


def test_a_server_that_is_not_there() -> None:
    with httpx.Client(base_url="http://127.0.0.1:9") as nowhere:
        with pytest.raises(ServerError, match=r"cannot reach http://127.0.0.1:9"):
            first_model(nowhere)
        with pytest.raises(ServerError, match="broke"):
            next(stream_chat(nowhere, "m", []))


def test_the_first_model() -> None:
    with client('{"data": [{"id": "embedded"}]}') as server:
        assert first_model(server) == "embedded"
