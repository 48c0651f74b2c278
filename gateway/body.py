"""The body of a request: JSON, an object, UTF-8, within a size and a time. Everything else is an error that says so."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from packhorse.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    ContentTypeError,
    JobCancelledError,
    RequestError,
)

BODY_SECONDS = 60.0


async def read_json(request: Request, max_bytes: int, timeout_seconds: float = BODY_SECONDS) -> dict[str, Any]:
    """The body as a dictionary. Raises RequestError and its children, JobCancelledError when the client left."""
    _check_content_type(request.headers.get("content-type", ""))
    return parse(await _read(request, max_bytes, timeout_seconds))


def parse(raw: bytes) -> dict[str, Any]:
    """Strict JSON: no NaN, no lone surrogates. Raises RequestError."""
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise RequestError(f"the body must be a JSON object, not {type(body).__name__}")
    if b"\\u" in raw:
        _check_surrogates(body)
    return body


def _check_content_type(value: str) -> None:
    kind = value.partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ContentTypeError(f"content-type {value!r}: must be application/json")


async def _read(request: Request, max_bytes: int, timeout_seconds: float) -> bytes:
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise BodyTooLargeError(f"the body has {announced} bytes; at most {max_bytes} are allowed")
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_seconds):
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise BodyTooLargeError(f"the body has more than {max_bytes} bytes, which is the most allowed")
    except TimeoutError as error:
        raise BodyTimeoutError(f"the body did not arrive within {timeout_seconds:g} s") from error
    except ClientDisconnect as error:
        raise JobCancelledError("the client left before its request was complete") from error
    return bytes(body)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _check_surrogates(body: dict[str, Any]) -> None:
    try:
        json.dumps(body, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError("the body has a lone surrogate (\\ud800 to \\udfff), which is no character") from error
