"""Jitted sums of one coded page's values by weights, O^T = V^T W^T: the codes of V are the A operand, the queries the narrow side.

See reference/history.py. Knows nothing of page tables.
"""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"
# ruff: noqa: RET505

from __future__ import annotations

import triton
import triton.language as tl

from .fragments import int8_factor, largest
from .packed import (
    code_field_in_place,
    in_place_weight,
    integer_halves,
    multiply_halves,
    quantize_halves,
    scale_halves,
    to_halves,
)


@triton.jit
def weigh_values(out, offsets, w, share, page, L: tl.constexpr, ROWS: tl.constexpr, PTX: tl.constexpr):
    """Adds share * (sum over the page's tokens of w * v) to `out` (blocks [v_padded, ROWS]) and `offsets` (groups [16, ROWS]).

    w float32 [ROWS, 64] in 0..1; share [ROWS]. What belongs to v's codes goes to `out`, what belongs to v_zero to `offsets`, in rows that
    are all equal.
    """
    weights = to_halves(tl.reshape(w, (ROWS, 4, 16)), PTX)
    codes = ()
    for sub in tl.static_range(L.v_blocks // L.v_planes):
        codes = codes + (load_v_codes(page, sub, L),)
    new_out = ()
    new_offsets = ()
    for group in tl.static_range(L.v_groups):
        scaled = multiply_halves(weights, load_v_scale(page, group, L, ROWS, PTX), PTX)
        factor, step = int8_factor(largest(scaled, PTX), PTX)
        w8 = w_operand(quantize_halves(scaled, tl.broadcast_to(factor[:, None, None], (ROWS, 4, 16)), PTX), L, ROWS)
        offset = load_v_offset(page, group, 16.0 if L.v_bits == 8 else 0.0, L, PTX)
        on_zeros = tl.dot(offset, w_halves_operand(scaled, L, ROWS))
        new_offsets = new_offsets + (offsets[group] + on_zeros * (share * (2.0 ** (L.v_bits - 10)))[None, :],)
        step = step * share * 0.03125
        for i in tl.static_range(L.v_blocks // L.v_groups):
            new_out = new_out + (_weigh_block(out, codes, w8, step, group * (L.v_blocks // L.v_groups) + i, L, PTX),)
    return new_out, new_offsets


@triton.jit
def _weigh_block(out, codes, w8, step, BLOCK: tl.constexpr, L: tl.constexpr, PTX: tl.constexpr):
    SUBS: tl.constexpr = L.v_blocks // L.v_planes
    operand = v_operand(code_field_in_place(codes[BLOCK % SUBS], L.v_bits, BLOCK // SUBS, PTX), L)
    product = tl.dot(operand, w8, out_dtype=tl.int32).to(tl.float32)
    return out[BLOCK] + product * (step / in_place_weight(L.v_bits, BLOCK // SUBS))[None, :]


@triton.jit
def load_v_scale(page, GROUP: tl.constexpr, L: tl.constexpr, ROWS: tl.constexpr, PTX: tl.constexpr):
    """2**5 * v_scale of a group, float16 [ROWS, 4, 16]."""
    token = tl.arange(0, 4)[:, None] * 16 + tl.arange(0, 16)[None, :]
    scale = scale_halves(tl.load(page + L.v_scale + GROUP * L.page_tokens + token), PTX)
    return tl.broadcast_to(scale[None, :, :], (ROWS, 4, 16))


@triton.jit
def load_v_offset(page, GROUP: tl.constexpr, ADD: tl.constexpr, L: tl.constexpr, PTX: tl.constexpr):
    """v_zero + ADD of a group as the operand float16 [16, 64], rows equal, tokens in the order of `w_halves_operand`."""
    token = tl.arange(0, 4)[:, None] * 16 + tl.arange(0, 16)[None, :]
    codes = tl.load((page + L.v_zero + GROUP * L.page_tokens).to(tl.pointer_type(tl.int8)) + token)
    offset = integer_halves(codes, PTX)
    if ADD != 0.0:
        offset += ADD
    offset = tl.broadcast_to(offset[None, :, :], (8, 4, 16))
    offset = tl.permute(tl.reshape(offset, (8, 4, 4, 2, 2)), (0, 2, 3, 1, 4))
    offset = tl.reshape(offset, (1, 8, L.page_tokens))
    return tl.reshape(tl.broadcast_to(offset, (2, 8, L.page_tokens)), (16, L.page_tokens))


@triton.jit
def w_operand(w, L: tl.constexpr, ROWS: tl.constexpr):
    """[ROWS, 4, 16] by lane -> the operand [64, ROWS]."""
    return tl.reshape(tl.permute(tl.reshape(w, (ROWS, 4, 4, 4)), (2, 1, 3, 0)), (L.page_tokens, ROWS))


@triton.jit
def w_halves_operand(w, L: tl.constexpr, ROWS: tl.constexpr):
    """As w_operand, of float16: two tokens on end to a lane."""
    return tl.reshape(tl.permute(tl.reshape(w, (ROWS, 4, 4, 2, 2)), (2, 3, 1, 4, 0)), (L.page_tokens, ROWS))


@triton.jit
def load_v_codes(page, SUB: tl.constexpr, L: tl.constexpr):
    """uint8 [rest, 4, 8, 4, bytes], the SUB-th v_rows channels of every plane: quads of a lane, rows, lane, channels x 4 tokens."""
    WORDS: tl.constexpr = L.head_dim // L.v_planes
    PACK: tl.constexpr = min(4, L.v_padded // 8)
    REST: tl.constexpr = L.v_padded // 8 // PACK
    rest = tl.arange(0, REST)[:, None, None, None, None] * (8 * PACK)
    first = rest + tl.arange(0, 8)[None, None, :, None, None] * PACK
    quad = tl.arange(0, 4)[None, None, None, :, None] * 4 + tl.arange(0, 4)[None, :, None, None, None]
    byte = tl.arange(0, 4 * PACK)[None, None, None, None, :]
    pointers = page + L.v_codes + (quad * WORDS + SUB * L.v_rows + first) * 4 + byte
    if L.v_rows == L.v_padded:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=first + byte // 4 < L.v_rows, other=0)


@triton.jit
def v_operand(codes, L: tl.constexpr):
    """Expanded codes as `load_v_codes` lays them -> the operand [v_padded, 64], channels in the order of `block_channels`."""
    PACK: tl.constexpr = min(4, L.v_padded // 8)
    x = tl.reshape(codes, (L.v_padded // 8 // PACK, 4, 8, 4, PACK, 4))
    return tl.reshape(tl.permute(x, (0, 4, 2, 1, 3, 5)), (L.v_padded, L.page_tokens))


@triton.jit
def block_channels(L: tl.constexpr):
    """[v_padded]: which channel of a block each row of its output holds; v_rows or more is padding."""
    PACK: tl.constexpr = min(4, L.v_padded // 8)
    row = tl.arange(0, L.v_padded)
    return row // (8 * PACK) * (8 * PACK) + (row % 8) * PACK + row // 8 % PACK
