"""Grow sequences by a token, natively: into the residual, and the block that it fills into a page."""

from __future__ import annotations

from torch import Tensor

from hack_kernels.page_format import PageFormat

from .close_pages import close_blocks
from .library import DTYPES, Append, call, format_struct, readable, residual_struct, run, writable


def append(
    fmt: PageFormat,
    k: Tensor,
    v: Tensor,
    pages: Tensor,
    residual: Tensor,
    residual_rows: Tensor,
    num_tokens: Tensor,
    open_slots: Tensor,
) -> None:
    """See hack_kernels/append.py."""
    if k.dtype != v.dtype:
        k, v = k.float(), v.float()
    k, v, rows, counts = readable(k), readable(v), residual_rows.contiguous(), num_tokens.contiguous()
    call(
        "packhorse_append",
        Append(
            format_struct(fmt), run(), residual_struct(writable("residual", residual)),
            k.shape[0], k.shape[1], DTYPES[k.dtype], k.data_ptr(), v.data_ptr(),
            *k.stride()[:2], *v.stride()[:2], rows.data_ptr(), counts.data_ptr(),
        ),
    )  # fmt: skip
    full = fmt.next_fills_page(num_tokens).nonzero().squeeze(-1)
    if full.shape[0]:
        blocks = readable(residual)[..., fmt.sink_tokens :, :]
        rows, slots = residual_rows[full], open_slots[full]
        close_blocks(fmt, blocks[:, 0], blocks[:, 1], writable("pages", pages), full.shape[0], rows, slots)
