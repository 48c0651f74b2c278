"""Grow sequences on the GPU: the new token into the residual, and the block that it fills from there into its page, in one launch.

Which blocks fill is known on the device alone and nothing is read back: a program is launched for every sequence and KV head, stores
its token, and goes on to the block where that is full.
"""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from hack_kernels.page_format import PageFormat

from .close import close_block, constants_of
from .close_pages import WARPS
from .launch import next_power_of_2
from .layout import layout_of


@triton.jit
def append_tokens(
    k, v, pages, residual, residual_rows, num_tokens, open_slots, row_stride, value_stride, head_stride, slot_stride,
    page_stride, page_head_stride, KV_HEADS: tl.constexpr, PADDED: tl.constexpr, SINKS: tl.constexpr, L: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """Programs (sequence, KV head): k, v [batch, KV_HEADS, head_dim] into the slot of position num_tokens; a full block into its page."""
    block, full = _store_token(
        k, v, residual, residual_rows, num_tokens, row_stride, value_stride, head_stride, slot_stride,
        KV_HEADS, L.head_dim, PADDED, SINKS, L.page_tokens,
    )  # fmt: skip
    if full:
        page = pages + tl.multiple_of(_page_offset(open_slots, page_stride, page_head_stride), 16)
        close_block(block, block + value_stride, page, slot_stride, L, C)


@triton.jit
def append_raw_tokens(
    k, v, pages, residual, residual_rows, num_tokens, open_slots, row_stride, value_stride, head_stride, slot_stride,
    page_stride, page_head_stride, KV_HEADS: tl.constexpr, PADDED: tl.constexpr, SINKS: tl.constexpr,
    DIM: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """As append_tokens, with raw pages: K as it is, then V."""
    block, full = _store_token(
        k, v, residual, residual_rows, num_tokens, row_stride, value_stride, head_stride, slot_stride,
        KV_HEADS, DIM, PADDED, SINKS, TOKENS,
    )  # fmt: skip
    if full:
        page = pages + _page_offset(open_slots, page_stride, page_head_stride)
        page = page.to(tl.pointer_type(residual.dtype.element_ty))
        dims = tl.arange(0, PADDED)
        for token in range(TOKENS):
            at = block + token * slot_stride + dims
            tl.store(page + token * DIM + dims, tl.load(at, mask=dims < DIM), mask=dims < DIM)
            values = tl.load(at + value_stride, mask=dims < DIM)
            tl.store(page + (TOKENS + token) * DIM + dims, values, mask=dims < DIM)


@triton.jit
def _store_token(
    k, v, residual, residual_rows, num_tokens, row_stride, value_stride, head_stride, slot_stride,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, SINKS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Stores this program's token. Where K of its open block lies in the residual, and whether the block is full now."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    position = tl.load(num_tokens + sequence)
    in_block = (position - SINKS) % TOKENS
    slot = tl.where(position < SINKS, position, SINKS + in_block)
    keys = residual + tl.load(residual_rows + sequence) * row_stride + head * head_stride
    dims = tl.arange(0, PADDED)
    source = (sequence * KV_HEADS + head) * DIM + dims
    target = keys + slot * slot_stride + dims
    dtype = residual.dtype.element_ty
    tl.store(target, tl.load(k + source, mask=dims < DIM).to(dtype), mask=dims < DIM)
    tl.store(target + value_stride, tl.load(v + source, mask=dims < DIM).to(dtype), mask=dims < DIM)
    tl.debug_barrier()  # all threads of the program read the token that one of them wrote
    return keys + SINKS * slot_stride, (position >= SINKS) & (in_block == TOKENS - 1)


@triton.jit
def _page_offset(open_slots, page_stride, page_head_stride):
    return tl.load(open_slots + tl.program_id(0)) * page_stride + tl.program_id(1) * page_head_stride


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
    """See hack_kernels/append.py. Raises ValueError for a format without a kernel, and for strided last dimensions."""
    for name, tensor in (("residual", residual), ("pages", pages)):
        if tensor.stride(-1) != 1 and tensor.numel():
            raise ValueError(f"{name}'s last dimension is strided")
    indices = (x.contiguous() for x in (residual_rows, num_tokens, open_slots))
    arguments = (k.contiguous(), v.contiguous(), pages, residual, *indices, *residual.stride()[:4], *pages.stride()[:2])
    constants: dict[str, Any] = {
        "KV_HEADS": k.shape[1], "PADDED": next_power_of_2(fmt.head_dim), "SINKS": fmt.sink_tokens,
    }  # fmt: skip
    if fmt.raw:
        kernel, constants, warps = append_raw_tokens, constants | {"DIM": fmt.head_dim, "TOKENS": fmt.page_tokens}, 1
    else:
        kernel, constants, warps = append_tokens, constants | {"L": layout_of(fmt), "C": constants_of(fmt)}, WARPS
    if k.numel():
        kernel[k.shape[:2]](*arguments, **constants, num_warps=warps, enable_fp_fusion=False)
