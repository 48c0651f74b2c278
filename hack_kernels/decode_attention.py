"""Attention of one decode step over a paged, quantized history and a residual, for a whole batch. Knows nothing of models."""

from __future__ import annotations

from torch import Tensor

from .backend import choose, function_of
from .decode_checks import check_decode, check_decode_values
from .page_format import PageFormat


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
    """`operation`, with the arguments of `decode_attention`. The native kernels check values themselves, in less time."""
    arguments = (q, pages, page_table, num_pages, residual, residual_rows, residual_tokens)
    check_decode(fmt, *arguments)
    backend = choose(q.device).name
    if backend != "cpu":
        check_decode_values(fmt, *arguments)
    attend = function_of(backend, operation, "fused_dequant" if operation.startswith("fused") else operation)
    result: Tensor = attend(fmt, *arguments, scale)
    return result
