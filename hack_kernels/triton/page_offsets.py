"""Jitted sums of weights over one coded page: their total, and the part of v_zero in the output, by tensor cores. See reference/history.py.

A slot is a group of V with what its codes lack: codes in a byte's top field are attended less 2**(v_bits - 1), see `code_field_in_place`.
There are at most 4. Lane a of a row's 4 holds slot a, and all hold the row's total.
"""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"

from __future__ import annotations

import triton
import triton.language as tl

from .fragments import ROWS, diagonal
from .packed import offset_halves, scale_halves


@triton.jit
def total_weight(w):
    """The sum of w float16 [ROWS, 4, 16] over tokens: [ROWS, 4], the same in all lanes."""
    return diagonal(tl.dot(sums_operand(w), tl.full((32, 8), 1.0, tl.float16)))


@triton.jit
def weigh_offsets(w, page, TOPS: tl.constexpr, L: tl.constexpr, PTX: tl.constexpr):
    """What `block_offset` takes, of one page: [ROWS, 4], a slot to a lane. w float16 [ROWS, 4, 16]; TOPS: bits of top slots."""
    return diagonal(tl.dot(sums_operand(w), load_offsets(page, TOPS, L, PTX)))


@triton.jit
def sums_operand(w):
    """float16 [ROWS, 4, 16] by lane -> the operand [16, 32]: of each lane's 16 tokens the first half stacked on the second."""
    return tl.reshape(tl.permute(tl.reshape(w, (ROWS, 4, 2, 2, 2, 2)), (2, 0, 3, 4, 1, 5)), (2 * ROWS, 32))


@triton.jit
def load_offsets(page, TOPS: tl.constexpr, L: tl.constexpr, PTX: tl.constexpr):
    """v_scale * (v_zero, + 16 in top slots) / 4 as the operand [32, 8]: column 2 * slot + half, tokens as `sums_operand` has them."""
    slot = tl.arange(0, 4)
    group = tl.full((4,), L.v_slot_groups, tl.int32) >> (2 * slot) & 3
    token = group[:, None] * L.page_tokens + tl.arange(0, L.page_tokens)[None, :]
    base = ((tl.full((4,), TOPS, tl.int32) >> slot & 1).to(tl.float32) * 0.125 - 9.0).to(tl.float16)
    scale = scale_halves(tl.load(page + L.v_scale + token), PTX)
    zero = tl.load((page + L.v_zero).to(tl.pointer_type(tl.int8)) + token)
    x = offset_halves(zero, scale, tl.broadcast_to(base[:, None], token.shape), PTX)
    x = tl.permute(tl.reshape(x, (4, 4, 2, 2, 2, 2)), (3, 4, 1, 5, 0, 2))
    return tl.reshape(x, (32, 8))


@triton.jit
def block_offset(offsets, BLOCK: tl.constexpr, L: tl.constexpr):
    """What the offsets of all pages, [ROWS, 4], add to a block's channels, [ROWS]."""
    slot = tl.arange(0, 4) == (L.v_block_slots >> (2 * BLOCK) & 3)
    return tl.sum(tl.where(slot[None, :], offsets, 0.0), 1) * 2.0 ** (L.v_bits - 3)
