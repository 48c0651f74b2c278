"""Grow sequences by a token: into the residual, and the block that it fills into a page. The specification."""

from __future__ import annotations

import torch
from torch import Tensor

from hack_kernels.page_format import PageFormat

from .close_pages import close_pages


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
    in_block = fmt.sink_tokens + (num_tokens - fmt.sink_tokens) % fmt.page_tokens
    slots = torch.where(num_tokens < fmt.sink_tokens, num_tokens, in_block)
    residual[residual_rows, 0, :, slots] = k.to(residual.dtype)
    residual[residual_rows, 1, :, slots] = v.to(residual.dtype)
    full = fmt.next_fills_page(num_tokens).nonzero().squeeze(-1)
    if full.shape[0]:
        block = residual.index_select(0, residual_rows[full])[..., fmt.sink_tokens :, :]
        pages.index_copy_(0, open_slots[full], close_pages(fmt, block[:, 0], block[:, 1]))
