"""A job, how its tokens are chosen, the tokens that come of it (the token plane, workers -> gateway, is `Tokens`), and what it cost."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import FinishReason, Model


class Sampling(Model):
    """How to choose the tokens of one job. `logprobs` is the number of alternatives to report (0: the chosen token alone)."""

    max_tokens: int = Field(ge=1)
    temperature: float = Field(default=1.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0, description="0: no limit")
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    seed: int = Field(ge=0, lt=2**63, description="the gateway draws one where the request has none")
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = Field(default=1.0, gt=0.0)
    logit_bias: dict[int, float] = Field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = Field(default=None, ge=0)


class ToolPause(Model):
    """The job stops once it has generated `after_tokens`, and goes on `seconds` later: what a tool call does to it."""

    after_tokens: int = Field(ge=1)
    seconds: float = Field(gt=0)


class Job(Model):
    """One sequence to prefill and decode; a request with n > 1 is n jobs. `reply_to` is the gateway's token address."""

    job_id: str
    prompt: tuple[int, ...] = Field(min_length=1)
    sampling: Sampling
    reply_to: str
    priority: int = 0
    max_ttft_seconds: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="from submission to token 1, as the client allows"
    )
    tool_pause: ToolPause | None = None
    cache_salt: str = Field(default="", description="prefix pages are shared among jobs of the same salt only")


class JobStats(Model):
    """What one job cost, gathered along its way."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prefill_worker: str = ""
    decode_worker: str = Field(default="", description="empty: token 1 ended the job")
    bytes_shipped: int = Field(default=0, description="payload bytes of pages and residual")
    bytes_held: int = Field(
        default=0, description="of prompt pages that the decode worker held, so that they were not sent"
    )
    raw_bytes: int = Field(default=0, description="the whole prompt as raw pages and residual in 16-bit values")
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    ship_seconds: float = Field(default=0.0, description="end of prefill to the decode side's acknowledgement")
    preemptions: int = Field(default=0, description="how often the job gave way to others on a decode worker")

    def after(self, earlier: JobStats) -> JobStats:
        """What the job cost with this attempt at it, where `earlier` is what it cost before."""
        sums = {name: getattr(earlier, name) + getattr(self, name) for name in _SUMMED}
        return self.model_copy(update=sums)


_SUMMED = ("bytes_shipped", "bytes_held", "raw_bytes", "prefill_seconds", "ship_seconds", "preemptions")


class TokenLogprob(Model):
    token_id: int
    logprob: float


class TokenOutput(Model):
    """One generated token. `index` counts from 0 (token 1, by the prefill worker); receivers put tokens in its order."""

    job_id: str
    index: int
    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_string: str | None = Field(default=None, description="the stop string that ended the job, if one did")
    stats: JobStats | None = Field(default=None, description="with the last token, and with token 1")


class Tokens(Model):
    """All tokens of one step for one gateway."""

    kind: Literal["tokens"] = "tokens"
    worker_id: str
    outputs: tuple[TokenOutput, ...]
