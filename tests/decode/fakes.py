"""A model of a few numbers whose next token depends on all keys and values before it, and sequences for it to run."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from decode.batch import DecodeBatch, DecodeSequence
from decode.copier import Copier, HostCopy
from decode.engine import DecodeEngine, Step
from decode.pool import PagePool, Reservation
from decode.scores import Scorer
from model.adapter import Attend, ModelInfo
from model.sampler import SamplerState
from model.text import FinishRule
from tests.gates import Gate
from tests.shapes import FORMAT, INFO
from tests.waiting import PATIENCE_SECONDS
from transport.messages import Job, JobStats, LengthScore, Replay, Sampling, TokenOutput


class TinyModel:
    """Row by row, so that a sequence's logits do not depend on its batch."""

    def __init__(self, info: ModelInfo = INFO) -> None:
        self.info = info
        draw = torch.Generator().manual_seed(0)
        width = info.heads * info.head_dim
        self._embed = torch.randn(info.vocab_size, info.heads, info.head_dim, generator=draw)
        self._head = torch.randn(width, info.vocab_size, generator=draw) / width**0.5

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend, logits_at: Tensor) -> Tensor:
        return self.forward_hidden(tokens, positions, attend, logits_at)[0]

    def forward_hidden(
        self, tokens: Tensor, positions: Tensor, attend: Attend, logits_at: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = self._embed[tokens] + torch.sin(positions.float())[:, None, None]
        for layer in range(self.info.layers):
            k, v = x[:, : self.info.kv_heads], x[:, -self.info.kv_heads :]
            x = x + attend(layer, x, k.contiguous(), v.contiguous(), self.info.head_dim**-0.5)
        hidden = x.flatten(1)[logits_at]
        rows = [row @ self._head for row in hidden]
        return torch.stack(rows) if rows else torch.zeros(0, self.info.vocab_size), hidden


def make_job(job_id: str, prompt: Sequence[int], **sampling: Any) -> Job:
    fields = {"max_tokens": 40, "temperature": 1.0, "seed": 7, "ignore_eos": True} | sampling
    return Job(job_id=job_id, prompt=tuple(prompt), sampling=Sampling(**fields), reply_to="tcp://x")


def sequence_of(pool: PagePool, job: Job, replay: Replay | None = None) -> DecodeSequence:
    """As it comes from prefill: its prompt is stored, and token 1 is the prompt's last token again; or as it comes after it was dropped."""
    reservation = pool.reserve(job.job_id, FORMAT.num_pages(len(job.prompt) + job.sampling.max_tokens))
    first = job.prompt[-1]
    sampler, finish = SamplerState(job.sampling, job.prompt), FinishRule(job, None, INFO.eos_token_ids)
    tokens, stats = (replay.tokens, replay.stats) if replay is not None else ((first,), JobStats())
    for token in tokens:
        sampler.record(token)
        finish.push(token)
    sequence = DecodeSequence(job, reservation, sampler, finish, stats, last_token=0, num_tokens=0)
    model = TinyModel()
    for token in job.prompt:
        sequence.last_token = token
        batch = DecodeBatch(pool, [sequence])
        model.forward(batch.tokens, batch.positions, batch, batch.logits_at)
        sequence.num_tokens += 1
    sequence.last_token, sequence.replay = first, deque(tokens[1:])
    return sequence


class Memory:
    """A pool, and copies out of it and back that are done at once."""

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.copies: dict[str, HostCopy] = {}
        self._copier = Copier(pool.pages, pool.residual)
        self._copier.close()  # only its threads end

    def swap_out(self, job_id: str, closed_pages: int) -> None:
        held = self.pool.leave(job_id)
        self.copies[job_id] = self._copier.copy_out(held.slots[:closed_pages], held.row)
        self.pool.left(job_id)

    def swap_in(self, job_id: str) -> Reservation:
        held, copy = self.pool.come_back(job_id), self.copies[job_id]
        self._copier.copy_back(copy, held.slots[: sum(part.shape[1] for part in copy.pages)], held.row)
        self.pool.came_back(job_id)
        return held

    @property
    def used(self) -> tuple[int, int, int]:
        return self.pool.used_slots, self.pool.used_rows, self.pool.host_pages_used


class Bench:
    """An engine over a tiny model; what its steps yield, by job."""

    def __init__(self, pool: PagePool, scorer: Scorer | None = None) -> None:
        self.pool = pool
        self.scores: list[tuple[str, LengthScore]] = []
        self.outputs: dict[str, list[TokenOutput]] = defaultdict(list)
        self.steps = 0
        self.failed: list[str] = []
        self.paused: list[str] = []
        self._changed = asyncio.Event()
        model: Any = TinyModel()
        self.engine = DecodeEngine(model, pool, self._stepped, scorer)
        self.gate = Gate(self.engine)

    def _stepped(self, step: Step) -> None:
        self.steps += 1
        for sequence, output in step.outputs:
            self.outputs[sequence.job.job_id].append(output)
        self.failed += [sequence.job.job_id for sequence, _ in step.failed]
        self.paused += [sequence.job.job_id for sequence in step.paused]
        self.scores += step.scores.items()
        self._changed.set()

    async def tokens(self, job_id: str, count: int | None = None) -> list[int]:
        """Once there are `count`, or the last."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not self._has(job_id, count):
                self._changed.clear()
                await self._changed.wait()
        return [output.token_id for output in self.outputs[job_id]]

    def _has(self, job_id: str, count: int | None) -> bool:
        outputs = self.outputs[job_id]
        return len(outputs) >= count if count is not None else bool(outputs and outputs[-1].finish_reason)
