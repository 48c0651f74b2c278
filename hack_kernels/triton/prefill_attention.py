"""Attention of one prefill chunk for the GPU: history pages on their codes, then exact keys, causal, flash style.

The history is attended by the decode kernel, 8 rows of queries to a program, so that they share a page's expanded codes. Temporary
memory is O(chunk): what the history contributes, once per split.
"""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hack_kernels.page_format import PageFormat

from .dense import NEVER, attend_keys, empty_rows, split_terms
from .history import attend_history, query_rows
from .launch import INTERPRETED, TRITON_DTYPES, check_group, last_contiguous, next_power_of_2, query_terms
from .page_scores import LOG2_E

HISTORY_QUERIES = 8  # to a sequence of the decode kernel's: their rows fill its tiles of 8 at any GQA ratio
EXACT_ROWS = 64
EXACT_WARPS = 8  # 4 spill on sm_80


@triton.jit
def attend_chunk(
    q, k, v, part_out, part_top, part_total, out, scale, num_queries, tokens, head_stride, token_stride, splits,
    HEADS: tl.constexpr, GROUP: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
    PADDED: tl.constexpr, DTYPE: tl.constexpr, TERMS: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Programs (tile of QUERIES queries, KV head): query i sees the first tokens - num_queries + i + 1 keys, and all of the splits."""
    tile = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    first_row, row, valid = query_rows(tile, kv_head, num_queries, HEADS, GROUP, QUERIES, ROWS, 1)
    row += first_row
    dims = tl.arange(0, PADDED)
    mask = valid[:, None] & (dims < DIM)[None, :]
    queries = split_terms(tl.load(q + row[:, None] * DIM + dims[None, :], mask=mask, other=0.0), DTYPE, TERMS)
    last_seen = tokens - num_queries + tile * QUERIES + tl.arange(0, ROWS) // GROUP  # [ROWS]
    end = tl.minimum(tokens, tokens - num_queries + (tile + 1) * QUERIES)
    state = empty_rows(ROWS, PADDED)
    for start in range(0, end, 64):
        token = start + tl.arange(0, 64)
        at = kv_head.to(tl.int64) * head_stride + token.to(tl.int64)[:, None] * token_stride + dims[None, :]
        inside = (token < end)[:, None] & (dims < DIM)[None, :]
        keys = tl.load(k + at, mask=inside, other=0.0)
        values = tl.load(v + at, mask=inside, other=0.0)
        seen = token[None, :] <= tl.minimum(last_seen, end - 1)[:, None]
        state = attend_keys(state, queries, keys, values, seen, scale * LOG2_E, 1, PTX)
    top, total, result = state
    for split in range(splits):
        part = row * splits + split
        share = tl.load(part_total + part, mask=valid, other=0.0)
        held = share != 0.0  # true of NaN
        split_top = tl.load(part_top + part, mask=held, other=NEVER)
        partial = tl.load(part_out + part[:, None] * DIM + dims[None, :], mask=held[:, None] & mask, other=0.0)
        new_top = tl.maximum(top, split_top)
        keep, add = tl.exp2(top - new_top), tl.exp2(split_top - new_top)
        total = total * keep + share * add
        result = result * keep[:, None] + partial * add[:, None]
        top = new_top
    tl.store(out + row[:, None] * DIM + dims[None, :], (result / total[:, None]).to(out.dtype.element_ty), mask=mask)


def prefill_attention(
    fmt: PageFormat,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    pages: Tensor | None = None,
    page_slots: Tensor | None = None,
) -> Tensor:
    """See hack_kernels/prefill_attention.py. Raises ValueError for a format, a GQA ratio or a mix of dtypes without a kernel."""
    chunk, heads, dim = q.shape
    kv_heads, tokens = k.shape[:2]
    group = heads // kv_heads
    check_group(group)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if chunk == 0:
        return out
    q = q.contiguous()
    if pages is None or page_slots is None or page_slots.shape[0] == 0:
        splits, parts = 0, [q.new_empty(0, dtype=torch.float32)] * 3
    else:
        table, count = page_slots.contiguous(), torch.full_like(page_slots[:1], page_slots.shape[0])
        splits, *parts = attend_history(fmt, q, pages, table, 0, count, 0, scale, HISTORY_QUERIES)
    k = last_contiguous(k)
    v = v.to(k.dtype)
    if v.stride() != k.stride():
        v = torch.empty_strided(k.shape, k.stride(), dtype=k.dtype, device=k.device).copy_(v)
    queries = EXACT_ROWS // group
    attend_chunk[(-(-chunk // queries), kv_heads)](
        q, k, v, *parts, out, float(scale), chunk, tokens, *k.stride()[:2], splits,
        HEADS=heads, GROUP=group, QUERIES=queries, ROWS=EXACT_ROWS, DIM=dim, PADDED=max(16, next_power_of_2(dim)),
        DTYPE=TRITON_DTYPES[k.dtype], TERMS=query_terms(q.dtype, k.dtype), PTX=not INTERPRETED, num_warps=EXACT_WARPS,
    )  # fmt: skip
    return out
