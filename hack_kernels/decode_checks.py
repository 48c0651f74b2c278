"""Checks of the arguments that `decode_attention` and its yardstick share. Knows nothing of back ends."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import (
    FLOATS,
    INDICES,
    check_format,
    check_heads,
    check_pool,
    check_range,
    check_residual,
    check_tensor,
)
from .page_format import PageFormat

MAX_QUERIES = 8


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
