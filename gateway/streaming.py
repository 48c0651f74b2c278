"""A generation as an HTTP response: one JSON object, or server-sent events.

The headers wait for the first token, so whatever fails before it has its own HTTP status. What fails after it is an event
`data: {"error": ...}`, after which the stream ends without `data: [DONE]`. A client that leaves ends the generation, at any time.
This file knows nothing of what the objects look like (`Format`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from fastapi.responses import JSONResponse, Response
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from gateway.choice import Choice, Piece
from gateway.failure import error_object, error_response
from gateway.generation import Generation
from gateway.service import Service
from gateway.usage import usage
from packhorse.errors import PackhorseError
from transport.messages import FinishReason

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Format(ABC):
    """What one endpoint's objects look like. All methods return members of `choices`."""

    whole_object: str
    chunk_object: str

    @abstractmethod
    def opening(self, index: int) -> dict[str, Any] | None:
        """What comes before a choice's first piece."""

    @abstractmethod
    def delta(self, index: int, piece: Piece) -> dict[str, Any] | None:
        """A piece; None when it has nothing to say."""

    @abstractmethod
    def closing(self, index: int, finish_reason: FinishReason) -> dict[str, Any]: ...

    @abstractmethod
    def whole(self, index: int, choice: Choice) -> dict[str, Any]: ...


class Reply(Response):
    """Runs `generation` while the client is connected. `choices_per_prompt` is the request's n."""

    def __init__(
        self,
        service: Service,
        generation: Generation,
        fmt: Format,
        *,
        request_id: str,
        choices_per_prompt: int,
        stream: bool,
        include_usage: bool,
    ) -> None:
        super().__init__()
        self._service = service
        self._generation = generation
        self._format = fmt
        self._choices_per_prompt = choices_per_prompt
        self._stream = stream
        self._include_usage = include_usage
        self._started = False
        self._envelope: dict[str, Any] = {"id": request_id, "created": int(time.time()), "model": service.model_name}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Whatever is sent, an error too, names the completion, by which /v1/jobs/{id} knows its jobs."""

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-completion-id"] = self._envelope["id"]
            await send(message)

        if not await while_connected(receive, self._answer(scope, receive, send_named)):
            self._service.metrics.cancelled.inc()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._generation:
                if self._stream:
                    await self._send_events(send)
                else:
                    await (await self._gather())(scope, receive, send)
            return
        except PackhorseError as error:
            failure = error
        except Exception:
            log.exception("request %s failed", self._envelope["id"])
            failure = PackhorseError("internal error")
        self._service.metrics.errors.labels(failure.code).inc()
        if self._started:
            await send({"type": "http.response.body", "body": event(error_object(failure)), "more_body": False})
        else:
            await error_response(failure)(scope, receive, send)

    async def _gather(self) -> JSONResponse:
        async with aclosing(self._generation.pieces()) as pieces:
            async for _ in pieces:
                pass
        choices = [self._format.whole(index, choice) for index, choice in enumerate(self._generation.choices)]
        body = {**self._envelope, "object": self._format.whole_object, "choices": choices, "usage": self._usage()}
        return JSONResponse(body)

    async def _send_events(self, send: Send) -> None:
        seen: set[int] = set()
        async with aclosing(self._generation.pieces()) as pieces:
            async for index, piece in pieces:
                if not self._started:
                    await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
                    self._started = True
                chunks = self._chunks(index, piece, opening=index not in seen)
                seen.add(index)
                if chunks:
                    body = b"".join(event(self._chunk([chunk])) for chunk in chunks)
                    await send({"type": "http.response.body", "body": body, "more_body": True})
        last = event({**self._chunk([]), "usage": self._usage()}) + DONE if self._include_usage else DONE
        await send({"type": "http.response.body", "body": last, "more_body": False})

    def _chunks(self, index: int, piece: Piece, *, opening: bool) -> Sequence[dict[str, Any]]:
        chunks = [self._format.opening(index) if opening else None, self._format.delta(index, piece)]
        if piece.finish_reason is not None:
            chunks.append(self._format.closing(index, piece.finish_reason))
        return [chunk for chunk in chunks if chunk is not None]

    def _chunk(self, choices: Iterable[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._envelope, "object": self._format.chunk_object, "choices": choices}
        return {**chunk, "usage": None} if self._include_usage else chunk

    def _usage(self) -> dict[str, Any]:
        return usage(self._generation.choices, self._choices_per_prompt)


def event(fields: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Runs `work` to its end, or cancels it when the client leaves. True when it ended; raises what it raised."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        ended = working.done()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
    if ended:
        working.result()
    return ended


async def _disconnect(receive: Receive) -> None:
    """Returns when the client has left. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
