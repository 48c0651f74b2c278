"""From a checked request to the jobs that answer it: one per prompt and choice, each with a seed of its own."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from gateway.schema import GenerationRequest
from gateway.service import Service
from packhorse.errors import RequestError
from transport.messages import Job, Sampling, ToolPause


def build_jobs(
    service: Service,
    request: GenerationRequest,
    request_id: str,
    prompts: Sequence[Sequence[int]],
    *,
    prompt_param: str,
    asked_tokens: int | None,
    default_tokens: int | None,
    logprobs: int | None,
) -> list[Job]:
    """`request.n` jobs for each of `prompts`, prompt by prompt. Raises RequestError, ContextLengthError."""
    service.limits.check_token_ids(request.logit_bias, "logit_bias")
    service.limits.check_token_ids(request.stop_token_ids, "stop_token_ids")
    budgets = [service.limits.max_tokens(len(ids), asked_tokens, default_tokens, prompt_param) for ids in prompts]
    _check_pause(request, min(budgets))
    return [
        Job(
            job_id=f"{request_id}-{place * request.n + choice}",
            prompt=tuple(ids),
            sampling=_sampling(request, max_tokens, choice, logprobs),
            reply_to=service.backend.reply_to,
            priority=request.priority,
            max_ttft_seconds=request.max_ttft_seconds,
            cache_salt=request.cache_salt,
            tool_pause=ToolPause(**request.tool_pause.model_dump()) if request.tool_pause is not None else None,
        )
        for place, (ids, max_tokens) in enumerate(zip(prompts, budgets, strict=True))
        for choice in range(request.n)
    ]


def _check_pause(request: GenerationRequest, max_tokens: int) -> None:
    """A pause that could not come would be a field without effect."""
    pause = request.tool_pause
    if pause is not None and pause.after_tokens >= max_tokens:
        raise RequestError(
            f"tool_pause.after_tokens={pause.after_tokens} must be less than max_tokens, {max_tokens}",
            param="tool_pause.after_tokens",
        )


def _sampling(request: GenerationRequest, max_tokens: int, choice: int, logprobs: int | None) -> Sampling:
    """The choices of one prompt have consecutive seeds, since with the same one they would be the same."""
    seed = secrets.randbits(63) if request.seed is None else (request.seed + choice) % 2**63
    return Sampling(
        max_tokens=max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        seed=seed,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=request.logit_bias,
        stop=tuple(request.stop),
        stop_token_ids=tuple(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
        logprobs=logprobs,
    )
