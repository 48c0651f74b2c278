"""Chooses the next token of each job of a batch, from logits alone.

Per job, in this order: logit bias; repetition, presence and frequency penalties; temperature; top-k; top-p; min-p; one draw by
inverse CDF over the tokens from most to least probable. Token i of a job uses one random number that depends on the job's seed and
on i only, so its tokens do not depend on the batch, nor on which worker samples them. It knows nothing of workers, text or when to stop.

Reported logprobs are those of the model's own distribution, before all of the above.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from packhorse.errors import PackhorseError, RequestError
from transport.messages import Sampling, TokenLogprob

from .draw import draw

MIN_LOGPROB = -9999.0
"""What is reported for a token that the model excludes: minus infinity does not exist in JSON."""


@dataclass(frozen=True)
class Sampled:
    """One token; `logprob` is None unless the job asks for logprobs."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()


class SamplerState:
    """What the sampler must know of one job. Another worker continues it by recording the tokens so far."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling = sampling
        self.generated: list[int] = []
        self._counts: Counter[int] = Counter()
        self._prompt_ids = frozenset(prompt) if sampling.repetition_penalty != 1.0 else frozenset()
        self._num_prompt_tokens = len(prompt)

    def record(self, token_id: int) -> None:
        """Appends the token that was chosen."""
        self.generated.append(token_id)
        self._counts[token_id] += 1

    def random(self) -> float:
        """The number in [0, 1) for the next token: Philox with the seed as key and the token's index as counter."""
        bits = np.random.Philox(key=self.sampling.seed, counter=len(self.generated))
        return float(np.random.Generator(bits).random())

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature == 0.0

    @property
    def adjusts(self) -> bool:
        """Whether `adjust` would change anything."""
        s = self.sampling
        return bool(s.logit_bias or s.presence_penalty or s.frequency_penalty or s.repetition_penalty != 1.0)

    def adjust(self, logits: Tensor) -> None:
        """Bias and penalties, in place on the job's logits [vocab].

        Repetition divides positive and multiplies negative logits of tokens in the prompt or the output; presence and frequency
        subtract, for tokens of the output only, once and per occurrence. Raises RequestError for a bias on an unknown token.
        """
        s = self.sampling
        if s.logit_bias:
            unknown = [i for i in s.logit_bias if not 0 <= i < logits.shape[0]]
            if unknown:
                raise RequestError(
                    f"logit_bias names token {unknown[0]}; the vocabulary has {logits.shape[0]}", param="logit_bias"
                )
            logits[_ids(s.logit_bias, logits)] += logits.new_tensor(list(s.logit_bias.values()))
        if s.repetition_penalty != 1.0:
            ids = _ids(self._prompt_ids | self._counts.keys(), logits)
            x = logits[ids]
            logits[ids] = torch.where(x > 0, x / s.repetition_penalty, x * s.repetition_penalty)
        if (s.presence_penalty or s.frequency_penalty) and self._counts:
            counts = logits.new_tensor(list(self._counts.values()))
            logits[_ids(self._counts, logits)] -= s.presence_penalty + s.frequency_penalty * counts

    def __str__(self) -> str:
        return f"prompt of {self._num_prompt_tokens} tokens, {len(self.generated)} generated, seed {self.sampling.seed}"


def sample(logits: Tensor, states: Sequence[SamplerState]) -> list[Sampled]:
    """logits float32 [N, vocab], one row per state -> the next token of each. Records nothing.

    Raises PackhorseError naming the jobs whose logits are broken (see `broken_rows`), RequestError for an impossible bias.
    """
    if logits.dim() != 2 or logits.shape[0] != len(states):
        raise ValueError(f"logits {tuple(logits.shape)} are not [{len(states)}, vocab]")
    broken = [f"row {i}: {states[i]}" for i, bad in enumerate(broken_rows(logits)) if bad]
    if broken:
        raise PackhorseError(f"the model's logits are NaN or infinite ({'; '.join(broken)})")
    adjusted = _adjusted(logits, states)
    tokens = adjusted.argmax(dim=-1).tolist()  # of equal ones the first
    drawing = [i for i, state in enumerate(states) if not state.greedy]
    if drawing:
        settings, numbers = [states[i].sampling for i in drawing], [states[i].random() for i in drawing]
        for i, token in zip(drawing, draw(adjusted[drawing], settings, numbers), strict=True):
            tokens[i] = token
    return _with_logprobs(logits, states, tokens)


def broken_rows(logits: Tensor) -> list[bool]:
    """Which rows of [N, vocab] hold no distribution: a NaN, plus infinity, or nothing but minus infinity."""
    if not logits.shape[0]:
        return []
    return (~logits.amax(dim=-1).isfinite()).tolist()


def _adjusted(logits: Tensor, states: Sequence[SamplerState]) -> Tensor:
    rows = [i for i, state in enumerate(states) if state.adjusts]
    if not rows:
        return logits
    logits = logits.clone()
    for i in rows:
        states[i].adjust(logits[i])
    return logits


def _with_logprobs(logits: Tensor, states: Sequence[SamplerState], tokens: Sequence[int]) -> list[Sampled]:
    """The chosen tokens with the logprobs that their jobs ask for, of the raw logits [N, vocab]."""
    out = []
    for row, state, token in zip(logits, states, tokens, strict=True):
        asked = state.sampling.logprobs
        if asked is None:
            out.append(Sampled(token))
            continue
        logprobs = row.log_softmax(dim=-1).clamp(min=MIN_LOGPROB)
        top = logprobs.topk(min(asked, logprobs.shape[0]))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        alternatives = tuple(TokenLogprob(token_id=i, logprob=value) for i, value in pairs)
        out.append(Sampled(token, float(logprobs[token]), alternatives))
    return out


def _ids(ids: Collection[int], like: Tensor) -> Tensor:
    return torch.tensor(list(ids), dtype=torch.long, device=like.device)
