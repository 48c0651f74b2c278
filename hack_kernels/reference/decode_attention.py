"""One decode step's attention of a layer: the newest queries of each sequence over its pages and its residual. The specification.

All (sequence, page) pairs of the batch lie in one flat list, each page is a split of its own, and the splits are merged with
the residual by log-sum-exp. Pages that no sequence lists, and residual slots beyond a sequence's tokens, are never computed on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hack_kernels.page_format import PageFormat

from .history import attend_history
from .partial import Partial, attend_exact


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
) -> Tensor:
    """See hack_kernels/decode_attention.py."""
    kv_heads = pages.shape[1]
    several = q if q.dim() == 4 else q.unsqueeze(1)
    grouped = torch.unflatten(several.float() * scale, 2, (kv_heads, -1)).transpose(1, 2)
    queries = grouped.flatten(2, 3)  # [batch, kv_heads, rows: queries times heads / kv_heads, head_dim]
    later = torch.arange(several.shape[1] - 1, -1, -1, device=q.device).repeat_interleave(grouped.shape[3])
    tokens = residual_tokens.unsqueeze(-1) - later  # [batch, rows]
    start = _attend_residual(queries, residual.index_select(0, residual_rows), tokens)
    listed = torch.arange(page_table.shape[1], device=q.device) < num_pages.unsqueeze(-1)
    owner = torch.repeat_interleave(num_pages)
    merged = attend_history(fmt, start, queries, pages, page_table[listed], owner)
    out = torch.unflatten(merged.result(), 2, (several.shape[1], -1)).transpose(1, 2)
    return out.reshape(q.shape).to(q.dtype)


def _attend_residual(q: Tensor, residual: Tensor, tokens: Tensor) -> Partial:
    """q [batch, kv_heads, rows, head_dim]; residual [batch, 2, kv_heads, slots, head_dim]; row r sees tokens[i, r] slots."""
    slots = torch.arange(residual.shape[3], device=q.device)
    seen = slots < tokens.unsqueeze(-1)  # [batch, rows, slots]
    unused = ~seen.any(1)[:, None, None, :, None]  # [batch, 1, 1, slots, 1]; these may hold NaN, and 0 * NaN is NaN
    filled = residual.float().masked_fill(unused, 0.0)
    return attend_exact(q, filled[:, 0], filled[:, 1], seen.unsqueeze(1))
