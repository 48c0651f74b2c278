"""One chunk of prefill: which tokens of which jobs it holds, and the attention of those tokens.

The prompt's own K and V are attended exactly, from a scratch buffer in the model's dtype. As soon as a layer has closed a
page it is quantized and handed over; the residual waits until token 1 is known. It knows nothing of threads or networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from hack_kernels import close_pages, prefill_attention
from hack_kernels.page_format import PageFormat
from model.adapter import ModelInfo
from model.sampler import SamplerState
from model.text import FinishRule
from transport.messages import Job


class Outlet(Protocol):
    """Takes what leaves the prefill worker, on the engine's thread; payloads are CPU bytes that nobody changes any more."""

    def pages(self, layer: int, first_page: int, num_pages: int, payload: memoryview) -> None: ...

    def residual(self, layer: int, num_tokens: int, payload: memoryview) -> None: ...


@dataclass
class PrefillSequence:
    """A job on its way through prefill. `outlet` is None when nothing is to be shipped (max_tokens is 1)."""

    job: Job
    outlet: Outlet | None
    sampler: SamplerState
    finish: FinishRule
    kv: torch.Tensor  # [layers, 2, kv_heads, prompt_tokens, head_dim], the scratch
    first_token: int | None = None  # of a job that was dropped: token 1 is not sampled
    held_pages: int = 0  # the prompt's first ones, which the decode worker has: they are not handed over
    done_tokens: int = 0
    seconds: float = 0.0
    shipped_bytes: int = 0
    residuals: list[memoryview] = field(default_factory=list)  # per layer [2, kv_heads, residual tokens, head_dim]

    @property
    def prompt_tokens(self) -> int:
        return len(self.job.prompt)

    def ship_residual(self, fmt: PageFormat) -> None:
        """Hands over the residual of every layer: token 1 did not end the job."""
        if self.outlet is not None:
            for layer, payload in enumerate(self.residuals):
                self.shipped_bytes += len(payload)
                self.outlet.residual(layer, fmt.residual_tokens(self.prompt_tokens), payload)

    @classmethod
    def scratch(cls, info: ModelInfo, prompt_tokens: int) -> torch.Tensor:
        shape = (info.layers, 2, info.kv_heads, prompt_tokens, info.head_dim)
        return torch.empty(shape, dtype=info.dtype, device=info.device)


@dataclass(frozen=True)
class Piece:
    """Tokens [start, end) of a sequence's prompt, at rows [row, row + end - start) of the chunk."""

    sequence: PrefillSequence
    start: int
    end: int
    row: int

    @property
    def last(self) -> bool:
        return self.end == self.sequence.prompt_tokens

    @property
    def rows(self) -> slice:
        return slice(self.row, self.row + self.end - self.start)


def plan_chunk(sequences: Sequence[PrefillSequence], chunk_tokens: int) -> list[Piece]:
    """Fills a chunk from `sequences` in their order; the last piece may be part of a prompt."""
    pieces: list[Piece] = []
    row = 0
    for sequence in sequences:
        if row == chunk_tokens:
            break
        end = min(sequence.prompt_tokens, sequence.done_tokens + chunk_tokens - row)
        pieces.append(Piece(sequence, sequence.done_tokens, end, row))
        row += end - sequence.done_tokens
    return pieces


@dataclass
class PrefillBatch:
    """The `Attend` of one chunk."""

    fmt: PageFormat
    pieces: list[Piece]
    tokens: torch.Tensor = field(init=False)  # int64 [chunk]
    positions: torch.Tensor = field(init=False)  # int64 [chunk]
    logits_at: torch.Tensor = field(init=False)  # int64 [pieces that end their prompt]

    def __post_init__(self) -> None:
        self.tokens = torch.tensor([t for p in self.pieces for t in p.sequence.job.prompt[p.start : p.end]])
        self.positions = torch.cat([torch.arange(p.start, p.end) for p in self.pieces])
        self.logits_at = torch.tensor([p.rows.stop - 1 for p in self.pieces if p.last], dtype=torch.int64)

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """q [chunk, heads, head_dim], k and v [chunk, kv_heads, head_dim] after RoPE -> [chunk, heads, head_dim]."""
        out = torch.empty_like(q)
        for piece in self.pieces:
            kv = piece.sequence.kv[layer]  # [2, kv_heads, prompt_tokens, head_dim]
            kv[0, :, piece.start : piece.end] = k[piece.rows].transpose(0, 1)
            kv[1, :, piece.start : piece.end] = v[piece.rows].transpose(0, 1)
            known = kv[:, :, : piece.end]
            out[piece.rows] = prefill_attention(self.fmt, q[piece.rows], known[0], known[1], scale)
            if piece.sequence.outlet is not None:
                self._ship(piece, layer, kv)
        return out

    def _ship(self, piece: Piece, layer: int, kv: torch.Tensor) -> None:
        """Hands over the pages that this piece closed in `layer`, less held ones; at the prompt's end, keeps the residual."""
        sequence, fmt, outlet = piece.sequence, self.fmt, piece.sequence.outlet
        assert outlet is not None
        last = fmt.num_pages(piece.end)
        first = max(fmt.num_pages(piece.start), sequence.held_pages)
        if last > first:
            closed = kv[:, :, self._token(first) : self._token(last)]
            blocks = torch.unflatten(closed, 2, (last - first, fmt.page_tokens)).transpose(1, 2)
            payload = _bytes(close_pages(fmt, blocks[0].contiguous(), blocks[1].contiguous()))
            sequence.shipped_bytes += len(payload)
            outlet.pages(layer, first, last - first, payload)
        if piece.last:
            sinks = min(fmt.sink_tokens, piece.end)
            residual = torch.cat((kv[:, :, :sinks], kv[:, :, self._token(last) : piece.end]), dim=2)
            sequence.residuals.append(_bytes(residual))

    def _token(self, page: int) -> int:
        """The first token of page `page`."""
        return self.fmt.sink_tokens + page * self.fmt.page_tokens


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's bytes in CPU memory; they live as long as the view."""
    flat = tensor.contiguous().view(torch.uint8).reshape(-1)
    return memoryview(flat.cpu().numpy())  # type: ignore[arg-type]  # numpy arrays are buffers
