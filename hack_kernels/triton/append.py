"""Grow sequences on the GPU: the new token into the residual, full blocks from the residual into pages. One launch each.

Which blocks are full is known on the device alone and nothing is read back, so a program is launched for every sequence and KV head,
and returns where there is nothing to do.
"""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"

from __future__ import annotations

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
    k, v, residual, residual_rows, num_tokens, row_stride, value_stride, head_stride, slot_stride,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, SINKS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Programs (sequence, KV head): k, v [batch, KV_HEADS, DIM] into the slot of position num_tokens."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    position = tl.load(num_tokens + sequence)
    slot = tl.where(position < SINKS, position, SINKS + (position - SINKS) % TOKENS)
    row = tl.load(residual_rows + sequence)
    dims = tl.arange(0, PADDED)
    source = (sequence * KV_HEADS + head) * DIM + dims
    target = residual + row * row_stride + head * head_stride + slot * slot_stride + dims
    dtype = residual.dtype.element_ty
    tl.store(target, tl.load(k + source, mask=dims < DIM).to(dtype), mask=dims < DIM)
    tl.store(target + value_stride, tl.load(v + source, mask=dims < DIM).to(dtype), mask=dims < DIM)


@triton.jit
def close_blocks_of_residual(
    pages, residual, residual_rows, num_tokens, slots, row_stride, value_stride, head_stride, slot_stride,
    page_stride, page_head_stride, SINKS: tl.constexpr, L: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Programs (sequence, KV head): where the open block is full, closes it into the page of the sequence's slot."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    in_blocks = tl.load(num_tokens + sequence) - SINKS
    if (in_blocks > 0) & (in_blocks % L.page_tokens == 0):
        row = tl.load(residual_rows + sequence)
        k = residual + row * row_stride + head * head_stride + SINKS * slot_stride
        page = pages + tl.multiple_of(tl.load(slots + sequence) * page_stride + head * page_head_stride, 16)
        close_block(k, k + value_stride, page, slot_stride, L, C)


@triton.jit
def copy_blocks_of_residual(
    pages, residual, residual_rows, num_tokens, slots, row_stride, value_stride, head_stride, slot_stride,
    page_stride, page_head_stride, SINKS: tl.constexpr, DIM: tl.constexpr, TOKENS: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    """As close_blocks_of_residual, into raw pages: K as it is, then V."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    in_blocks = tl.load(num_tokens + sequence) - SINKS
    if (in_blocks > 0) & (in_blocks % TOKENS == 0):
        row = tl.load(residual_rows + sequence)
        k = residual + row * row_stride + head * head_stride + SINKS * slot_stride
        page = pages + tl.load(slots + sequence) * page_stride + head * page_head_stride
        page = page.to(tl.pointer_type(residual.dtype.element_ty))
        dims = tl.arange(0, PADDED)
        for token in range(TOKENS):
            at = token * slot_stride + dims
            tl.store(page + token * DIM + dims, tl.load(k + at, mask=dims < DIM), mask=dims < DIM)
            values = tl.load(k + value_stride + at, mask=dims < DIM)
            tl.store(page + (TOKENS + token) * DIM + dims, values, mask=dims < DIM)


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
    """See hack_kernels/append.py. This back end has no use for `pages` and `open_slots`."""
    if k.numel() == 0:
        return
    if residual.stride(-1) != 1:
        raise ValueError("residual's last dimension is strided")
    append_tokens[k.shape[:2]](
        k.contiguous(), v.contiguous(), residual, residual_rows.contiguous(), num_tokens.contiguous(),
        *residual.stride()[:4], KV_HEADS=k.shape[1], DIM=fmt.head_dim, PADDED=next_power_of_2(fmt.head_dim),
        SINKS=fmt.sink_tokens, TOKENS=fmt.page_tokens, num_warps=1,
    )  # fmt: skip


def close_full_blocks(
    fmt: PageFormat, pages: Tensor, residual: Tensor, residual_rows: Tensor, num_tokens: Tensor, slots: Tensor
) -> None:
    """See hack_kernels/append.py. Raises ValueError for a format without a kernel."""
    if residual_rows.shape[0] == 0 or pages.shape[1] == 0:
        return
    for name, tensor in (("residual", residual), ("pages", pages)):
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name}'s last dimension is strided")
    grid = (residual_rows.shape[0], pages.shape[1])
    indices = (x.contiguous() for x in (residual_rows, num_tokens, slots))
    arguments = (pages, residual, *indices, *residual.stride()[:4], *pages.stride()[:2])
    if fmt.raw:
        copy_blocks_of_residual[grid](
            *arguments, SINKS=fmt.sink_tokens, DIM=fmt.head_dim, TOKENS=fmt.page_tokens,
            PADDED=next_power_of_2(fmt.head_dim), num_warps=1,
        )  # fmt: skip
    else:
        close_blocks_of_residual[grid](
            *arguments, SINKS=fmt.sink_tokens, L=layout_of(fmt), C=constants_of(fmt), num_warps=WARPS,
            enable_fp_fusion=False,
        )  # fmt: skip
