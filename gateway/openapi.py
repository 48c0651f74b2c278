"""The OpenAPI description of the HTTP interface, at /openapi.json: the bodies that the endpoints read themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from gateway.schema import ChatRequest, CompletionRequest

DESCRIPTION = """
OpenAI's endpoints for text. A field is honoured or refused with a 400 that names it, never ignored.

Errors are `{"error": {"message", "type", "param", "code"}}`. The headers of a stream are sent with its first token, so an error
before it has its own HTTP status; one after it is an event `data: {"error": ...}`, and the stream ends without `data: [DONE]`.

`usage.kv_transfer` is an extension: the workers that served the request, the bytes of KV cache that went from one to the other,
those of prompt pages that were not sent since they were held already, what both would have been as 16-bit values, and the seconds of each
phase. With several choices bytes are summed, the others lists.
A completion's `id` is in the header `x-completion-id` of its response as well, also where that is an error. `/v1/jobs/{id}` tells how
its jobs were scheduled, one for each choice: the job of choice `i` has the id `<completion's id>-<i>`.
`max_ttft_seconds` is an extension: the request's own deadline to its first token, in seconds. A request that is predicted to miss it is
refused with 429; one that still waits for workers by then fails with 504.
`tool_pause` is an extension: the generation stops after `after_tokens` tokens, and goes on by itself `seconds` later.
`logprobs` have one entry per generated token, the one that ended the choice included; `text_offset` counts from the
beginning of the choice's text. Choice `i` of a prompt with `seed` s is sampled with seed s + i.
"""
_BODIES: dict[str, type[BaseModel]] = {"/v1/chat/completions": ChatRequest, "/v1/completions": CompletionRequest}
_REFERENCE = "#/components/schemas/{model}"


def describe(app: FastAPI) -> dict[str, Any]:
    """The document; made anew at each call."""
    document = get_openapi(title="Packhorse", version="1", description=DESCRIPTION, routes=app.routes)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for path, kind in _BODIES.items():
        schema = kind.model_json_schema(ref_template=_REFERENCE)
        schemas |= schema.pop("$defs", {}) | {kind.__name__: schema}
        content = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=kind.__name__)}}}
        document["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
    return document
