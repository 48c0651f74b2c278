"""Attention of one decode step over a paged, quantized history and a residual, for a whole batch. Knows nothing of models."""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import choose, implementation
from .checks import (
    FLOATS,
    INDICES,
    check_format,
    check_heads,
    check_once,
    check_pool,
    check_range,
    check_residual,
    check_tensor,
)
from .cpu.library import BadValue
from .page_format import PageFormat

MAX_QUERIES = 8


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
    """The newest queries of each sequence against its closed pages, on their codes, and its residual.

    q                [batch, heads, head_dim], float; query heads h * heads / kv_heads and on share KV head h. Or
                     [batch, queries, heads, head_dim] with up to 8 queries, the newest tokens in their order, which lie in the
                     residual: query i sees the first residual_tokens - (queries - 1 - i) slots
    pages            uint8 [num_slots, kv_heads, page_bytes], one layer's pool
    page_table       int64 [batch, max_pages], the pool slots of each sequence's pages; what lies beyond num_pages is not read
    num_pages        int64 [batch], may be 0
    residual         [rows, 2 (K, V), kv_heads, residual_slots, head_dim] of fmt.dtype, one layer's
    residual_rows    int64 [batch]
    residual_tokens  int64 [batch], valid leading slots, at least the queries
    scale            the softmax scale
    -> q.shape, of q.dtype

    The newest token is appended before and attends to itself in the residual, as do all tokens of a block that it fills. So with
    n tokens before it, num_pages is fmt.num_pages(n) and residual_tokens is fmt.residual_tokens(n) + 1.
    Raises ValueError naming the bad argument; values are checked on the CPU alone.
    """
    arguments = (q, pages, page_table, num_pages, residual, residual_rows, residual_tokens)
    return run_decode("decode_attention", fmt, *arguments, scale)


def run_decode(
    operation: str,
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
    """`operation`, with the arguments of `decode_attention`. Native kernels look at the values themselves, in less time."""
    arguments = (q, pages, page_table, num_pages, residual, residual_rows, residual_tokens)
    check_once(check_decode, fmt, *arguments)
    attend = implementation(q.device, operation, "fused_dequant" if operation.startswith("fused") else None)
    if choose(q.device).name != "cpu":
        check_decode_values(fmt, *arguments)
    try:
        result: Tensor = attend(fmt, *arguments, scale)
    except BadValue:
        check_decode_values(fmt, *arguments)
        raise
    return result


def check_decode(
    fmt: PageFormat,
    q: Tensor,
    pages: Tensor,
    page_table: Tensor,
    num_pages: Tensor,
    residual: Tensor,
    residual_rows: Tensor,
    residual_tokens: Tensor,
) -> None:
    """Types, shapes and devices of `decode_attention`'s arguments. Raises ValueError naming the bad one."""
    check_format(fmt)
    several = ("queries",) if isinstance(q, Tensor) and q.dim() == 4 else ()
    check_tensor("q", q, ("batch", *several, "heads", fmt.head_dim), FLOATS)
    queries = q.shape[1] if several else 1
    if not 1 <= queries <= MAX_QUERIES:
        raise ValueError(f"q has {queries} queries per sequence, not 1..{MAX_QUERIES}")
    check_pool(fmt, pages, "kv_heads", q.device)
    check_heads("q", q.shape[-2], pages.shape[1])
    check_residual(fmt, residual, pages.shape[1], q.device)
    check_tensor("page_table", page_table, (q.shape[0], "max_pages"), INDICES, q.device)
    for name, counts in (
        ("num_pages", num_pages),
        ("residual_rows", residual_rows),
        ("residual_tokens", residual_tokens),
    ):
        check_tensor(name, counts, (q.shape[0],), INDICES, q.device)


def check_decode_values(
    fmt: PageFormat,
    q: Tensor,
    pages: Tensor,
    page_table: Tensor,
    num_pages: Tensor,
    residual: Tensor,
    residual_rows: Tensor,
    residual_tokens: Tensor,
) -> None:
    """Indices and counts are in their ranges, on the CPU alone. Raises ValueError naming the bad one."""
    queries = q.shape[1] if q.dim() == 4 else 1
    check_range("num_pages", num_pages, 0, page_table.shape[1])
    check_range("residual_rows", residual_rows, 0, residual.shape[0] - 1)
    check_range("residual_tokens", residual_tokens, queries, fmt.residual_slots)
    if q.device.type == "cpu":
        listed = torch.arange(page_table.shape[1]) < num_pages.unsqueeze(-1)
        check_range("page_table", page_table[listed], 0, pages.shape[0] - 1)
