"""POST /v1/chat/completions: messages through the model's chat template, answers as messages."""

from __future__ import annotations

import time
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from gateway.body import read_json
from gateway.choice import Choice, Piece
from gateway.failure import shown
from gateway.generation import Generation
from gateway.jobs import build_jobs
from gateway.logprobs import chat_entries
from gateway.schema import ChatRequest, Message, parse
from gateway.service import Service
from gateway.streaming import Format, Reply
from model.text import Tokenizer
from packhorse.errors import RequestError
from transport.messages import FinishReason

USUAL_ROLES = frozenset({"system", "user", "assistant"})


async def chat_completions(request: Request) -> Response:
    started_at = time.monotonic()
    service: Service = request.app.state.service
    chat = parse(ChatRequest, await read_json(request, service.max_body_bytes))
    service.check_model(chat.model)
    request_id = service.new_id("chatcmpl")
    prompt = await _prompt(service, chat.messages)
    jobs = build_jobs(
        service,
        chat,
        request_id,
        [prompt],
        prompt_param="messages",
        asked_tokens=chat.max_completion_tokens or chat.max_tokens,
        default_tokens=None,
        logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
    )
    return Reply(
        service,
        Generation(service, jobs, started_at),
        ChatFormat(service.tokenizer, chat.logprobs),
        request_id=request_id,
        choices_per_prompt=chat.n,
        stream=chat.stream,
        include_usage=chat.include_usage,
    )


async def _prompt(service: Service, messages: list[Message]) -> list[int]:
    """The token ids of the conversation, up to where the assistant answers. Raises RequestError when the template refuses it."""
    num_chars = sum(len(message.content) for message in messages)
    prompt = await service.tokenize(num_chars, lambda: _render(service.tokenizer, messages))
    if not prompt:
        raise RequestError("messages make an empty prompt", param="messages")
    return prompt


def _render(tokenizer: Tokenizer, messages: list[Message]) -> list[int]:
    """Other roles than the usual ones are the template's to know; one that leaves such a message out is told on."""
    plain = [{"role": message.role, "content": message.content} for message in messages]
    prompt = tokenizer.chat(plain)
    for place, message in enumerate(messages):
        if message.role not in USUAL_ROLES and _renders_to(tokenizer, plain[:place] + plain[place + 1 :], prompt):
            name = f"messages[{place}].role"
            raise RequestError(f"{name}={shown(message.role)}: this model's chat template has no such role", param=name)
    return prompt


def _renders_to(tokenizer: Tokenizer, messages: list[dict[str, str]], prompt: list[int]) -> bool:
    try:
        return tokenizer.chat(messages) == prompt
    except RequestError:
        return False


class ChatFormat(Format):
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._logprobs = logprobs

    def opening(self, index: int) -> dict[str, Any]:
        return _chunk(index, {"role": "assistant", "content": ""})

    def delta(self, index: int, piece: Piece) -> dict[str, Any] | None:
        if self._logprobs:
            return _chunk(index, {"content": piece.text}, logprobs=chat_entries([piece], self._tokenizer))
        return _chunk(index, {"content": piece.text}) if piece.text else None

    def closing(self, index: int, finish_reason: FinishReason) -> dict[str, Any]:
        return _chunk(index, {}, finish_reason=finish_reason)

    def whole(self, index: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": chat_entries(choice.pieces, self._tokenizer) if self._logprobs else None,
            "finish_reason": choice.finish_reason,
        }


def _chunk(
    index: int,
    delta: dict[str, Any],
    *,
    logprobs: dict[str, Any] | None = None,
    finish_reason: FinishReason | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
