"""One decode step's attention of a layer on codes, natively: tasks over (sequence, KV head, range of pages), merged by log-sum-exp.

Types, shapes and devices have been checked; values (counts, slots) are checked natively.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hack_kernels.decode_checks import check_decode_values
from hack_kernels.page_format import PageFormat

from .library import (
    DTYPES,
    MAX_ROWS,
    BadValue,
    Decode,
    Pool,
    Residual,
    Run,
    call,
    format_struct,
    readable,
    run_numbers,
)


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
    q, pages, page_table, num_pages, residual, residual_rows, residual_tokens = tensors = tuple(
        map(readable, (q, pages, page_table, num_pages, residual, residual_rows, residual_tokens))
    )
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    arguments = lay_out(fmt, scale, dequant, out, *tensors)
    try:
        call("packhorse_decode", arguments, q.data_ptr(), pages.data_ptr(), residual.data_ptr())
    except BadValue:
        check_decode_values(fmt, *tensors)
        raise
    return out


def lay_out(
    fmt: PageFormat,
    scale: float,
    dequant: bool,
    out: Tensor,
    q: Tensor,
    pages: Tensor,
    page_table: Tensor,
    num_pages: Tensor,
    residual: Tensor,
    residual_rows: Tensor,
    residual_tokens: Tensor,
) -> Decode:
    """All of a call but the addresses that change from layer to layer: those of q, pages and residual.

    Raises ValueError for more queries than the native kernels take.
    """
    batch, *several, heads, head_dim = q.shape
    queries, kv_heads, strides = (several or [1])[0], pages.shape[1], q.stride()
    if queries * (group := heads // kv_heads) > MAX_ROWS:
        raise ValueError(f"q has {queries * group} queries per KV head, more than {MAX_ROWS}")
    return Decode(
        format_struct(fmt), Run(*run_numbers(), dequant),
        Pool(None, *pages.stride()[:2]), Residual(None, *residual.stride()[:4]),
        batch, queries, kv_heads, group, None, out.data_ptr(),
        DTYPES[q.dtype], strides[0], strides[-3] if several else 0, strides[-2],
        queries * heads * head_dim, heads * head_dim, head_dim,
        page_table.data_ptr(), num_pages.data_ptr(), residual_rows.data_ptr(), residual_tokens.data_ptr(),
        page_table.stride(0), page_table.shape[1], pages.shape[0], residual.shape[0], scale,
    )  # fmt: skip
