"""Sequences in a pool and a residual, as a worker would hold them, with poison everywhere that no sequence owns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hack_kernels import PageFormat, close_pages, open_pages
from hack_kernels.reference.codes import unpack_k_codes, unpack_v_codes
from hack_kernels.reference.scales import decode_scale

POISON = 0xFF  # as bf16 (k_min), fp16 or fp32: NaN
POISON_SLOT = 0


def random_kv(kv_heads: int, tokens: int, head_dim: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """[2 (K, V), kv_heads, tokens, head_dim]; K with an outlier channel and an offset, as models have."""
    generator = torch.Generator().manual_seed(seed)
    kv = torch.randn(2, kv_heads, tokens, head_dim, generator=generator)
    kv[0, ..., 3] *= 4
    kv[0, ..., 5] += 2
    return kv.to(dtype)


def random_q(batch: int, heads: int, head_dim: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, heads, head_dim, generator=torch.Generator().manual_seed(seed))


@dataclass
class Stored:
    """The arguments of decode_attention for a batch; the newest token of each sequence is in the residual."""

    fmt: PageFormat
    pages: Tensor
    page_table: Tensor
    num_pages: Tensor
    residual: Tensor
    residual_rows: Tensor
    residual_tokens: Tensor

    def arguments(self) -> tuple[Tensor, ...]:
        return (
            self.pages,
            self.page_table,
            self.num_pages,
            self.residual,
            self.residual_rows,
            self.residual_tokens,
        )

    def opened(self, i: int) -> tuple[Tensor, Tensor]:
        """Every key and value of sequence i as stored, float64 [kv_heads, tokens, head_dim] each."""
        k, v = open_pages(self.fmt, self.owned(i))
        exact = self.residual[self.residual_rows[i], :, :, : int(self.residual_tokens[i])]
        parts = zip((k, v), exact, strict=True)
        k, v = (torch.cat((x.transpose(0, 1).flatten(1, 2), tail.float()), 1).double() for x, tail in parts)
        return k, v

    def owned(self, i: int) -> Tensor:
        """The pages of sequence i, [num_pages, kv_heads, page_bytes]."""
        return self.pages[self.page_table[i, : int(self.num_pages[i])]]


def store(fmt: PageFormat, sequences: list[Tensor], seed: int = 2) -> Stored:
    """`sequences`: K and V of each, [2, kv_heads, tokens, head_dim]. Slots and rows are shuffled; all else is NaN."""
    generator = torch.Generator().manual_seed(seed)
    kv_heads = sequences[0].shape[1]
    counts = [fmt.num_pages(kv.shape[2] - 1) for kv in sequences]  # the newest token's block is not listed yet
    slots = (torch.randperm(sum(counts), generator=generator) + 1).split(counts)
    rows = torch.randperm(len(sequences) + 2, generator=generator)[: len(sequences)]

    pages = torch.full((sum(counts) + 1, kv_heads, fmt.page_bytes), POISON, dtype=torch.uint8)
    table = torch.full((len(sequences), max(counts) + 1), POISON_SLOT)
    residual = torch.full((len(sequences) + 2, 2, kv_heads, fmt.residual_slots, fmt.head_dim), torch.nan)
    residual = residual.to(fmt.dtype)
    left = []
    for i, kv in enumerate(sequences):
        table[i, : counts[i]] = slots[i]
        blocks, rest = split(fmt, kv, counts[i])
        if counts[i]:
            pages[slots[i]] = close_pages(fmt, blocks[0], blocks[1])
        residual[rows[i], :, :, : rest.shape[2]] = rest.to(fmt.dtype)
        left.append(rest.shape[2])
    return Stored(fmt, pages, table, torch.tensor(counts), residual, rows, torch.tensor(left))


def split(fmt: PageFormat, kv: Tensor, num_pages: int) -> tuple[Tensor, Tensor]:
    """K and V of a sequence as blocks [2, num_pages, kv_heads, page_tokens, head_dim] and residual [2, kv_heads, n, head_dim]."""
    start, end = fmt.sink_tokens, fmt.sink_tokens + num_pages * fmt.page_tokens
    blocks = torch.unflatten(kv[:, :, start:end], 2, (num_pages, fmt.page_tokens)).transpose(1, 2)
    return blocks, torch.cat((kv[:, :, :start], kv[:, :, end:]), 2)


def attend_float64(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """q [heads, head_dim], k and v [kv_heads, tokens, head_dim] -> [heads, head_dim], all float64."""
    k, v = (x.repeat_interleave(q.shape[0] // k.shape[0], 0) for x in (k, v))
    weights = ((k @ q.double().unsqueeze(-1)).squeeze(-1) * scale).softmax(-1)
    return (weights.unsqueeze(1) @ v).squeeze(1)


def error_bound(fmt: PageFormat, q: Tensor, pages: Tensor, v: Tensor, scale: float) -> Tensor:
    """How far attention on codes may be from exact attention to the same opened pages, float64 [heads, head_dim].

    q [heads, head_dim]; pages [num_pages, kv_heads, page_bytes]; v [kv_heads, tokens, head_dim], all values, opened.

    Queries: rounding gives |q~[c] - a Q8[c]| <= a/2 with a = max|q~| / 127, so a score is off by at most
    e = max over t of a/2 * sum over c of k_codes[t, c] (exact in the residual). A change of all scores by at most e multiplies
    the odds of any set of tokens by at most exp(2e), which moves its probability by at most tanh(e/2), and so an average of values
    by at most their range times tanh(e/2).

    Weights: |w~[t] - b W8[t]| <= b/2 with b = max w~ / 127 <= max v_scale / 127, as w <= 1. A page's sum of w * v is off by at
    most b/2 * sum over t of v_codes[t, c]; in the output it is divided by a total to which every page adds at least its own
    share (its largest w is 1), so the pages' errors are averaged with weights that add up to at most 1: the largest one bounds.

    float32: 1e-5 relative to the values.
    """
    heads = q.shape[0]
    bound = 1e-5 * (1 + v.abs().amax(1))
    if pages.shape[0] and fmt.k_bits is not None and fmt.v_bits is not None:
        group = heads // pages.shape[1]
        queries = torch.unflatten(q.double() * scale, 0, (-1, group))  # [kv_heads, group, head_dim]
        k_scale = decode_scale(fmt.view(pages, "k_scale")).double().unsqueeze(-2)
        a = (queries * k_scale).abs().amax(-1) / 127  # [num_pages, kv_heads, group]
        k_sums = unpack_k_codes(fmt.view(pages, "k_codes"), fmt.k_bits).double().sum(-1).amax(-1)
        e = (a / 2 * k_sums.unsqueeze(-1)).amax(0).flatten()  # [heads]
        v_scale = decode_scale(fmt.view(pages, "v_scale")).double()
        b = v_scale.amax(-1).repeat_interleave(fmt.group_channels, -1) / 127
        v_sums = unpack_v_codes(fmt.view(pages, "v_codes"), fmt.v_bits).double().sum(-2)
        weights = (b / 2 * v_sums).amax(0)  # [kv_heads, head_dim]
        value_range = (v.amax(1) - v.amin(1)).repeat_interleave(group, 0)
        return (bound + weights).repeat_interleave(group, 0) + value_range * torch.tanh(e / 2).unsqueeze(-1)
    return bound.repeat_interleave(heads // v.shape[0], 0)
