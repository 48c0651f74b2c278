"""POST /v1/completions: prompts as text or token ids, answers as text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from gateway.body import read_json
from gateway.choice import Choice, Piece
from gateway.generation import Generation
from gateway.jobs import build_jobs
from gateway.logprobs import legacy_lists
from gateway.schema import CompletionRequest, parse
from gateway.service import Service
from gateway.streaming import Format, Reply
from model.text import Tokenizer
from packhorse.errors import RequestError
from transport.messages import FinishReason

DEFAULT_MAX_TOKENS = 16  # OpenAI's


async def completions(request: Request) -> Response:
    started_at = time.monotonic()
    service: Service = request.app.state.service
    completion = parse(CompletionRequest, await read_json(request, service.max_body_bytes))
    service.check_model(completion.model)
    request_id = service.new_id("cmpl")
    jobs = build_jobs(
        service,
        completion,
        request_id,
        [await _prompt(service, prompt) for prompt in completion.prompt],
        prompt_param="prompt",
        asked_tokens=completion.max_tokens,
        default_tokens=DEFAULT_MAX_TOKENS,
        logprobs=completion.logprobs,
    )
    return Reply(
        service,
        Generation(service, jobs, started_at),
        CompletionFormat(service.tokenizer, completion.logprobs is not None),
        request_id=request_id,
        choices_per_prompt=completion.n,
        stream=completion.stream,
        include_usage=completion.include_usage,
    )


async def _prompt(service: Service, prompt: str | list[int]) -> list[int]:
    """The prompt's token ids. Raises RequestError when one is not the model's, or there are none."""
    if isinstance(prompt, list):
        service.limits.check_token_ids(prompt, "prompt")
        return prompt
    ids = await service.tokenize(len(prompt), lambda: service.tokenizer.encode(prompt))
    if not ids:
        raise RequestError("prompt must not be empty", param="prompt")
    return ids


class CompletionFormat(Format):
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, tokenizer: Tokenizer, logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._logprobs = logprobs

    def opening(self, index: int) -> None:
        return None

    def delta(self, index: int, piece: Piece) -> dict[str, Any] | None:
        return self._choice(index, piece.text, [piece], None) if piece.text or self._logprobs else None

    def closing(self, index: int, finish_reason: FinishReason) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": finish_reason}

    def whole(self, index: int, choice: Choice) -> dict[str, Any]:
        return self._choice(index, choice.text, choice.pieces, choice.finish_reason)

    def _choice(
        self, index: int, text: str, pieces: Sequence[Piece], finish_reason: FinishReason | None
    ) -> dict[str, Any]:
        logprobs = legacy_lists(pieces, self._tokenizer) if self._logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
