"""One decode step's attention of a layer on codes, natively: tasks over (sequence, KV head, range of pages), merged by log-sum-exp.

A step makes the same call once per layer, and what other code ran between has left this file's cold. So all that follows from
types, shapes and strides is worked out once and kept as a plan: what is left of a call is looking that up, and addresses.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from hack_kernels.page_format import PageFormat

from .library import (
    DTYPES,
    MAX_ROWS,
    Decode,
    Pool,
    Residual,
    Run,
    call,
    format_struct,
    readable,
    run_numbers,
)

Place = tuple[torch.Size, tuple[int, ...]]  # shape and strides

MOST_PLANS = 1024  # batches and page tables come in many shapes


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
    """See hack_kernels/decode_attention.py. `dequant`: codes are dequantized in registers instead, as fused_dequant.py says."""
    tensors = (q, pages, page_table, num_pages, residual, residual_rows, residual_tokens)
    plan = _plan(fmt, scale, *run_numbers(), dequant, q.dtype, *[(x.shape, x.stride()) for x in tensors])
    if plan is None:
        q, pages, page_table, num_pages, residual, residual_rows, residual_tokens = map(readable, tensors)
        counts = (num_pages, residual, residual_rows, residual_tokens)
        return decode_attention(fmt, q, pages, page_table, *counts, scale, dequant=dequant)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    call("packhorse_decode", plan, out.data_ptr(), *[x.data_ptr() for x in tensors])
    return out


@lru_cache(MOST_PLANS)
def _plan(
    fmt: PageFormat,
    scale: float,
    isa: int,
    threads: int,
    dequant: bool,
    dtype: torch.dtype,
    q: Place,
    pages: Place,
    page_table: Place,
    num_pages: Place,
    residual: Place,
    residual_rows: Place,
    residual_tokens: Place,
) -> Decode | None:
    """All of a call but the addresses; None where a tensor's last dimension is not contiguous."""
    places = (q, pages, page_table, num_pages, residual, residual_rows, residual_tokens)
    if any(shape[-1] > 1 and strides[-1] != 1 for shape, strides in places):
        return None
    (batch, *several, heads, head_dim), strides = q
    queries, kv_heads = (several or [1])[0], pages[0][1]
    if queries * (group := heads // kv_heads) > MAX_ROWS:
        raise ValueError(f"q has {queries * group} queries per KV head, more than {MAX_ROWS}")
    return Decode(
        format_struct(fmt), Run(isa, threads, dequant), Pool(None, *pages[1][:2]), Residual(None, *residual[1][:4]),
        batch, queries, kv_heads, group, None, None,
        DTYPES[dtype], strides[0], strides[-3] if several else 0, strides[-2],
        queries * heads * head_dim, heads * head_dim, head_dim,
        None, None, None, None, page_table[1][0], page_table[0][1], pages[0][0], residual[0][0], scale,
    )  # fmt: skip
