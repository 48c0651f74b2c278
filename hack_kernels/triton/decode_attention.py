"""Decode attention for the GPU: history.py attends the pages in splits, a second kernel the residual, and adds the splits up."""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hack_kernels.page_format import PageFormat

from .dense import NEVER
from .history import attend_history
from .launch import check_group, last_contiguous, next_power_of_2
from .page_scores import LOG2_E


@triton.jit
def merge_splits(
    q, residual, residual_rows, residual_tokens, part_out, part_top, part_total, out, scale,
    row_stride, value_stride, head_stride, slot_stride, splits,
    HEADS: tl.constexpr, GROUP: tl.constexpr, QUERIES: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Programs (head, query): attends the residual in float32, adds the splits by log-sum-exp, writes out [num_queries, heads, DIM].

    Of a sequence's QUERIES the last sees residual_tokens slots, each before it one less.
    """
    head = tl.program_id(0)
    query = tl.program_id(1).to(tl.int64)
    sequence = query // QUERIES
    dims = tl.arange(0, PADDED)
    q_row = query * HEADS + head
    x = tl.load(q + q_row * DIM + dims, mask=dims < DIM, other=0.0).to(tl.float32) * (scale * LOG2_E)
    keys = residual + tl.load(residual_rows + sequence) * row_stride + (head // GROUP) * head_stride
    count = tl.load(residual_tokens + sequence).to(tl.int32) - (QUERIES - 1 - tl.program_id(1) % QUERIES)
    top, total, result = _empty_row(PADDED)
    for start in range(0, count, TILE):
        slot = start + tl.arange(0, TILE)
        pointers = keys + slot[:, None] * slot_stride + dims[None, :]
        inside = (slot < count)[:, None] & (dims < DIM)[None, :]
        k = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
        scores = tl.where(slot < count, tl.sum(k * x[None, :], 1), NEVER)
        v = tl.load(pointers + value_stride, mask=inside, other=0.0).to(tl.float32)
        top, total, result = _merge(top, total, result, scores, tl.where(slot < count, 1.0, 0.0), v)
    for start in range(0, splits, TILE):
        split = start + tl.arange(0, TILE)
        part = q_row * splits + split
        share = tl.load(part_total + part, mask=split < splits, other=0.0)
        held = share != 0.0  # true of NaN
        tops = tl.load(part_top + part, mask=held, other=NEVER)
        pointers = part_out + part[:, None] * DIM + dims[None, :]
        v = tl.load(pointers, mask=held[:, None] & (dims < DIM)[None, :], other=0.0)
        top, total, result = _merge(top, total, result, tops, share, v)
    tl.store(out + q_row * DIM + dims, (result / total).to(out.dtype.element_ty), mask=dims < DIM)


@triton.jit
def _empty_row(DIM: tl.constexpr):
    return tl.full((), NEVER, tl.float32), tl.full((), 0.0, tl.float32), tl.zeros((DIM,), tl.float32)


@triton.jit
def _merge(top, total, result, tops, totals, values):
    """Adds partial sums [n] and values [n, DIM], relative to `tops` (log2), to running ones relative to `top`."""
    new_top = tl.maximum(top, tl.max(tops, 0))
    keep = tl.exp2(top - new_top)
    shares = tl.exp2(tops - new_top)
    total = total * keep + tl.sum(shares * totals, 0)
    return new_top, total, result * keep + tl.sum(shares[:, None] * values, 0)


def decode_attention(
    fmt: PageFormat,
    q: Tensor,
    pages: Tensor,
    page_table: Tensor,
    num_pages: Tensor,
    residual: Tensor,
    residual_rows: Tensor,
    residual_tokens: Tensor,
    scale: float,
    *,
    dequant: bool = False,
) -> Tensor:
    """See hack_kernels/decode_attention.py; `dequant` is for fused_dequant.py.

    Raises ValueError for a format or a GQA ratio without a kernel.
    """
    heads, dim = q.shape[-2:]
    check_group(heads // pages.shape[1])
    queries = q.shape[1] if q.dim() == 4 else 1
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if q.numel() == 0:
        return out
    q = q.contiguous().view(-1, heads, dim)
    table = last_contiguous(page_table)
    counts = num_pages.contiguous()
    splits, *parts = attend_history(fmt, q, pages, table, table.stride(0), counts, 1, scale, queries, dequant)
    residual = last_contiguous(residual)
    merge_splits[(heads, q.shape[0])](
        q, residual, residual_rows.contiguous(), residual_tokens.contiguous(), *parts, out, float(scale),
        *residual.stride()[:4], splits,
        HEADS=heads, GROUP=heads // pages.shape[1], QUERIES=queries, DIM=dim, PADDED=next_power_of_2(dim), TILE=32,
        num_warps=4,
    )  # fmt: skip
    return out
