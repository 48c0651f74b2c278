"""Quantize blocks of K and V into pages on the GPU, byte for byte as reference/close_pages.py does.

A program closes one page of one KV head, K in slices of channels, then V in slices of tokens. Every step is a float32 operation
rounded to the nearest, which no compiler may contract with its neighbour.
"""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hack_kernels.page_format import PageFormat
from hack_kernels.reference.close_pages import open_pages as open_pages  # for tests and tools: no kernel of its own

from .close import close_block, constants_of
from .launch import last_contiguous
from .layout import layout_of

WARPS = 4


@triton.jit
def close_blocks(
    k, v, pages, page_stride, head_stride, token_stride, out_page_stride, out_head_stride,
    L: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Programs (page, KV head): k, v [num_pages, kv_heads, 64, head_dim], equally strided, into pages of bytes."""
    page = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    block = page * page_stride + head * head_stride
    out = pages + tl.multiple_of(page * out_page_stride + head * out_head_stride, 16)
    close_block(k + block, v + block, out, token_stride, L, C)


def close_pages(fmt: PageFormat, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
    """See hack_kernels/close_pages.py. Raises ValueError for a format without a kernel."""
    if out is None:
        out = k.new_empty(*k.shape[:2], fmt.page_bytes, dtype=torch.uint8)
    if fmt.raw:
        fmt.view(out, "k").copy_(k)
        fmt.view(out, "v").copy_(v)
        return out
    layout = layout_of(fmt)
    if k.numel() == 0:
        return out
    k = last_contiguous(k)
    if v.stride() != k.stride() or v.dtype != k.dtype:
        v = torch.empty_strided(k.shape, k.stride(), dtype=k.dtype, device=k.device).copy_(v)
    target = out if out.stride(-1) == 1 else out.contiguous()
    close_blocks[k.shape[:2]](
        k, v, target, *k.stride()[:3], *target.stride()[:2],
        L=layout, C=constants_of(fmt), num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    if target is not out:
        out.copy_(target)
    return out
