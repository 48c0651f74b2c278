"""Attention of one prefill chunk of one sequence: exact keys, and before them a history of pages. The specification.

Without history torch's own attention does the work. With history the exact part is computed here, since its log-sum-exp is
needed to merge the pages in, which are attended on their codes just as in decode. Memory is bounded by slices of queries.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hack_kernels.page_format import PageFormat

from .history import MAX_TEMPORARY_BYTES, attend_history
from .partial import attend_exact


def prefill_attention(
    fmt: PageFormat,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    pages: Tensor | None = None,
    page_slots: Tensor | None = None,
) -> Tensor:
    """See hack_kernels/prefill_attention.py."""
    if pages is None or page_slots is None or page_slots.shape[0] == 0:
        return _attend_exact_only(q, k, v, scale)
    return _attend_with_history(fmt, q, k.float(), v.float(), scale, pages, page_slots)


def _attend_exact_only(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    kv_heads, chunk, tokens = k.shape[0], q.shape[0], k.shape[1]
    queries = torch.unflatten(q.transpose(0, 1), 0, (kv_heads, -1))  # [kv_heads, rows, chunk, head_dim]
    keys, values = (x.unsqueeze(1).expand(-1, queries.shape[1], -1, -1) for x in (k, v))
    seen = None if chunk in (1, tokens) else _seen(chunk, tokens, q.device)
    out = scaled_dot_product_attention(queries, keys, values, seen, is_causal=chunk == tokens, scale=scale)
    return out.flatten(0, 1).transpose(0, 1)


def _attend_with_history(
    fmt: PageFormat,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    pages: Tensor,
    page_slots: Tensor,
) -> Tensor:
    kv_heads, chunk, tokens = k.shape[0], q.shape[0], k.shape[1]
    queries = torch.unflatten((q.float() * scale).transpose(0, 1), 0, (kv_heads, -1)).unsqueeze(0)
    seen = _seen(chunk, tokens, q.device)
    owner = torch.zeros_like(page_slots)
    rows = max(1, MAX_TEMPORARY_BYTES // (q.shape[1] * tokens * 4))
    results = []
    for first in range(0, chunk, rows):
        some = slice(first, first + rows)
        part = queries[:, :, :, some]  # [1, kv_heads, heads / kv_heads, queries of this slice, head_dim]
        group_size = part.shape[2]
        start = attend_exact(part.flatten(2, 3), k, v, seen[some].repeat(group_size, 1))
        merged = attend_history(fmt, start, part.flatten(2, 3), pages, page_slots, owner)
        results.append(torch.unflatten(merged.result(), 2, (group_size, -1)))
    out = torch.cat(results, dim=3)  # [1, kv_heads, heads / kv_heads, chunk, head_dim]
    return out.flatten(0, 2).transpose(0, 1).to(q.dtype)


def _seen(chunk: int, tokens: int, device: torch.device) -> Tensor:
    """bool [chunk, tokens]: query i sees the first tokens - chunk + i + 1 keys."""
    return torch.ones(chunk, tokens, dtype=torch.bool, device=device).tril_(tokens - chunk)
