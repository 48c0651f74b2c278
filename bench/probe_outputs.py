"""A model's greedy outputs with the hidden state at every token, in the steps of a decode worker and on the pages that it serves with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decode.batch import DecodeBatch, DecodeSequence
from decode.pool import PagePool
from hack_kernels.page_format import PageFormat
from model.adapter import Model
from model.sampler import SamplerState
from model.text import FinishRule
from packhorse.errors import ConfigError
from transport.messages import Job, JobStats, Sampling

BATCH = 32


@dataclass(frozen=True)
class Output:
    """hidden float32 [tokens - 1, hidden_size]: the state at token g, which token g + 1 is drawn from, is row g - 1."""

    prompt: tuple[int, ...]
    tokens: int
    hidden: Tensor


def page_format(name: str, model: Model) -> PageFormat:
    try:
        return PageFormat.parse(name, model.info.head_dim, model.info.dtype)
    except ValueError as error:
        raise ConfigError(f"kv_format={name!r}: {error}", param="kv_format") from error


@torch.inference_mode()
def generate(
    model: Model,
    fmt: PageFormat,
    prompts: Sequence[tuple[int, ...]],
    max_tokens: int,
    advance: Callable[[], None] = lambda: None,
) -> list[Output]:
    """Greedy outputs of at most `max_tokens` in the order of `prompts`, BATCH at a time, in the steps of a decode worker."""
    pages = fmt.num_pages(max(map(len, prompts)) + max_tokens)
    pool = PagePool(model.info, fmt, BATCH * pages, BATCH)
    waiting = list(enumerate(prompts))[::-1]
    running: dict[int, _Run] = {}
    outputs: dict[int, Output] = {}
    while waiting or running:
        while waiting and len(running) < BATCH:
            number, prompt = waiting.pop()
            running[number] = _Run(model, pool, f"{number}", prompt, max_tokens, pages)
        for number in _step(model, pool, running):
            outputs[number] = running.pop(number).output()
            pool.free(f"{number}")
            advance()
    return [outputs[number] for number in range(len(prompts))]


class _Run:
    """One sequence; its prompt is known tokens to the decode step. `hidden[g]` is the state after g generated tokens."""

    def __init__(
        self, model: Model, pool: PagePool, name: str, prompt: tuple[int, ...], max_tokens: int, pages: int
    ) -> None:
        job = Job(
            job_id=name, prompt=prompt, sampling=Sampling(max_tokens=max_tokens, temperature=0.0, seed=0), reply_to=""
        )
        finish = FinishRule(job, None, model.info.eos_token_ids)
        self.sequence = DecodeSequence(
            job, pool.reserve(name, pages), SamplerState(job.sampling, prompt), finish, JobStats(), prompt[0], num_tokens=0,
            replay=deque(prompt[1:]),
        )  # fmt: skip
        self.hidden: list[Tensor] = []

    def push(self, token: int) -> bool:
        """Whether the sequence goes on after this token."""
        self.sequence.last_token = token
        self.sequence.num_tokens += 1
        return not self.hidden or self.sequence.finish.push(token)[0] is None

    def output(self) -> Output:
        return Output(self.sequence.job.prompt, len(self.hidden), torch.stack(self.hidden)[1:])


def _step(model: Model, pool: PagePool, running: dict[int, _Run]) -> list[int]:
    """One token for each; returns those that ended."""
    batch = DecodeBatch(pool, [run.sequence for run in running.values()])
    in_prompt = [run for run in running.values() if run.sequence.replay]
    drawing = [(number, run) for number, run in running.items() if not run.sequence.replay]
    logits, hidden = model.forward_hidden(batch.tokens, batch.positions, batch, batch.logits_at)
    for run in in_prompt:
        run.push(run.sequence.replay.popleft())
    ended = []
    for (number, run), token, state in zip(drawing, logits.argmax(-1).tolist(), hidden.float().cpu(), strict=True):
        run.hidden.append(state)
        if not run.push(token):
            ended.append(number)
    return ended
