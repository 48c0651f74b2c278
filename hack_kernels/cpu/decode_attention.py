"""One decode step's attention of a layer on codes, natively: tasks over (sequence, KV head, range of pages), merged by log-sum-exp."""

from __future__ import annotations

import torch
from torch import Tensor

from hack_kernels.page_format import PageFormat

from .library import (
    DTYPES,
    MAX_ROWS,
    Decode,
    call,
    format_struct,
    pool_struct,
    readable,
    residual_struct,
    run,
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
    queries = q.unsqueeze(1) if q.dim() == 3 else q  # [batch, queries, heads, head_dim]
    group = queries.shape[2] // pages.shape[1]
    if queries.shape[1] * group > MAX_ROWS:
        raise ValueError(f"q has {queries.shape[1] * group} queries per KV head, more than {MAX_ROWS}")
    queries, pages, residual, table = readable(queries), readable(pages), readable(residual), readable(page_table)
    counts = [x.contiguous() for x in (num_pages, residual_rows, residual_tokens)]
    out = torch.empty(queries.shape, dtype=q.dtype)
    call(
        "packhorse_decode",
        Decode(
            format_struct(fmt), run(dequant), pool_struct(pages), residual_struct(residual),
            queries.shape[0], queries.shape[1], pages.shape[1], group, queries.data_ptr(), out.data_ptr(),
            DTYPES[q.dtype], *queries.stride()[:3], *out.stride()[:3], table.data_ptr(),
            *(x.data_ptr() for x in counts), table.stride(0), table.shape[1],
            pages.shape[0], residual.shape[0], scale,
        ),
    )  # fmt: skip
    return out.view(q.shape)
