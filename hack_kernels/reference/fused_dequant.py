"""Attention to what pages stand for: they are opened to float32, and attended exactly. Slow, and meant to be: the specification."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hack_kernels.page_format import PageFormat

from .close_pages import open_pages
from .decode_attention import decode_attention


def fused_dequant_attention(
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
    """See hack_kernels/fused_dequant.py."""
    opened = replace(fmt, k_bits=None, v_bits=None, dtype=torch.float32)
    raw = torch.cat([x.flatten(2).view(torch.uint8) for x in open_pages(fmt, pages)], -1)
    kept = (page_table, num_pages, residual.float(), residual_rows, residual_tokens, scale)
    return decode_attention(opened, q, raw, *kept)
