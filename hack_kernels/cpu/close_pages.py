"""Quantize blocks of K and V into pages, natively; the bytes are the reference's. Opening is for tests and tools: plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from hack_kernels.page_format import PageFormat
from hack_kernels.reference.close_pages import open_pages

from .library import DTYPES, Close, call, format_struct, pool_struct, readable, run, writable

__all__ = ["close_blocks", "close_pages", "open_pages"]


def close_pages(fmt: PageFormat, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
    """See hack_kernels/close_pages.py."""
    if out is None:
        out = k.new_empty(*k.shape[:2], fmt.page_bytes, dtype=torch.uint8)
    if k.dtype != v.dtype:
        k, v = k.float(), v.float()
    close_blocks(fmt, readable(k), readable(v), writable("out", out), k.shape[0], None, None)
    return out


def close_blocks(
    fmt: PageFormat, k: Tensor, v: Tensor, pages: Tensor, count: int, rows: Tensor | None, slots: Tensor | None
) -> None:
    """Block rows[i] of k and v [n, kv_heads, page_tokens, head_dim] into pages[slots[i]], i < count; both default to i."""
    if sum(field.num_bytes for field in fmt.fields.values()) < fmt.page_bytes:
        pages[slots if slots is not None else slice(count)] = 0  # padding
    call(
        "packhorse_close",
        Close(
            format_struct(fmt), run(), pool_struct(pages), count, k.shape[1], DTYPES[k.dtype], k.data_ptr(), v.data_ptr(),
            *k.stride()[:3], *v.stride()[:3],
            None if rows is None else rows.data_ptr(), None if slots is None else slots.data_ptr(),
        ),
    )  # fmt: skip
