"""OpenAI's error format: {"error": {"message", "type", "param", "code"}}, for every error that a client can see.

This file knows which HTTP headers go with an error and how a pydantic ValidationError reads to a person; it decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError

from packhorse.errors import AuthenticationError, PackhorseError, RequestError

MAX_SHOWN_CHARS = 80
_WORDING = {
    "missing": "is required",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "finite_number": "must be a finite number",
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be greater than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be less than {lt:g}",
    "string_pattern_mismatch": "must match {pattern}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
}


def error_object(error: PackhorseError) -> dict[str, Any]:
    """The body of an error response, and the data of an SSE error event."""
    return {"error": _fields(error.status, error.message, error.param, error.code)}


def error_response(error: PackhorseError) -> JSONResponse:
    """`error` as a response with its own status. OpenAI's clients obey `x-should-retry`, and `retry-after` in seconds."""
    headers = {"x-should-retry": "true" if error.retryable else "false"}
    if error.retryable:
        headers["retry-after"] = str(math.ceil(error.retry_after_seconds))
    if isinstance(error, AuthenticationError):
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_object(error), status_code=error.status, headers=headers)


def http_error_response(status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error of HTTP itself, such as an unknown path, which is no PackhorseError."""
    return JSONResponse({"error": _fields(status, message, None, code)}, status_code=status, headers=headers)


def _fields(status: int, message: str, param: str | None, code: str) -> dict[str, Any]:
    if status == 429:
        kind = "rate_limit_error"
    elif status < 500:
        kind = "invalid_request_error"
    else:
        kind = "server_error"
    return {"message": message, "type": kind, "param": param, "code": code}


def invalid(error: ValidationError) -> RequestError:
    """The first fault in `error` (all unknown fields together): names the field, its value and what is allowed."""
    faults = error.errors(include_url=False)
    unknown = [path(fault["loc"]) for fault in faults if fault["type"] == "extra_forbidden"]
    if unknown:
        return RequestError(f"unknown field{'s' * (len(unknown) > 1)}: {', '.join(unknown)}", param=unknown[0])
    fault = faults[0]
    name = path(fault["loc"])
    known = _WORDING.get(fault["type"])
    wording = known.format(**fault.get("ctx", {})) if known else fault["msg"]
    if fault["type"] == "missing":
        return RequestError(f"{name} {wording}", param=name)
    return RequestError(f"{name}={shown(fault['input'])}: {wording}", param=name)


def path(location: tuple[int | str, ...]) -> str:
    """("messages", 0, "role") -> messages[0].role"""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def shown(value: Any) -> str:
    """`value` in an error message: short, and in printable characters."""
    text = ascii(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
