"""Jitted sums of one coded page's values by weights, O^T = V^T W^T: the codes of V are the A operand, the queries the narrow side.

See reference/history.py. Weights become int8 in steps of 1/127 of the group's largest v_scale: one step for all queries, the one that
bounds those of the reference, which takes each query's largest weight. Knows nothing of page tables.
"""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"
# ruff: noqa: RET505

from __future__ import annotations

import triton
import triton.language as tl

from .fragments import ROWS, int8_factor
from .packed import FIRST_SCALE, anchor, code_field_in_place, multiply_halves_once, quantize_halves, scale_halves


@triton.jit
def weigh_values(out, w, share, page, L: tl.constexpr, PTX: tl.constexpr):
    """`out` (blocks [v_padded, ROWS]) + share * (sum over the page's tokens of w * v_scale * codes as they lie in their bytes).

    w float16 [ROWS, 4, 16] in 0..1; share [ROWS]. A block is off by `block_weight`.
    """
    lanes = v_lane_page(page, L, PTX)
    codes = load_all_v_codes(lanes, L)
    new_out = ()
    for group in tl.static_range(L.v_groups):
        w8, step = quantize_weights(w, page, group, L, PTX)
        step = share[None, :] * step
        for i in tl.static_range(L.v_blocks // L.v_groups):
            block = _weigh_block(out, lanes, codes, w8, step, group * (L.v_blocks // L.v_groups) + i, L, PTX)
            new_out = new_out + (block,)
    return new_out


@triton.jit
def _weigh_block(out, lanes, codes, w8, step, BLOCK: tl.constexpr, L: tl.constexpr, PTX: tl.constexpr):
    SUBS: tl.constexpr = L.v_blocks // L.v_planes
    own = block_codes(lanes, codes, BLOCK, L)
    operand = v_operand(code_field_in_place(own, L.v_bits, BLOCK // SUBS, PTX), L)
    return out[BLOCK] + tl.dot(operand, w8, out_dtype=tl.int32).to(tl.float32) * step


@triton.jit
def block_weight(BLOCK: tl.constexpr, L: tl.constexpr):
    """What a block of `out` is to be multiplied with: codes were attended times the power of two of the place where they lie."""
    return 2.0 ** (-5 - BLOCK // (L.v_blocks // L.v_planes) * L.v_bits)


@triton.jit
def quantize_weights(w, page, GROUP: tl.constexpr, L: tl.constexpr, PTX: tl.constexpr):
    """w * v_scale of a group as the operand int8 [64, ROWS], and the step, a scalar: 2**-5 * step is `b`."""
    codes = load_scale_codes(page, GROUP, L)
    top = ((tl.max(codes.to(tl.int32)) << 20) + FIRST_SCALE).to(tl.float32, bitcast=True) * 32.0
    factor, step = int8_factor(top, PTX)
    scale = multiply_halves_once(scale_halves(codes, PTX), factor, PTX)
    scale = tl.broadcast_to(scale[None, :, :], (ROWS, 4, 16))
    return w_operand(quantize_halves(w, scale, PTX), L), step


@triton.jit
def load_scale_codes(page, GROUP: tl.constexpr, L: tl.constexpr):
    """E5M3 codes of a group, uint8 [4, 16]."""
    token = tl.arange(0, 4)[:, None] * 16 + tl.arange(0, 16)[None, :]
    return tl.load(page + L.v_scale + GROUP * L.page_tokens + token)


@triton.jit
def w_operand(w, L: tl.constexpr):
    """[ROWS, 4, 16] by lane -> the operand [64, ROWS]."""
    return tl.reshape(tl.permute(tl.reshape(w, (ROWS, 4, 4, 4)), (2, 1, 3, 0)), (L.page_tokens, ROWS))


@triton.jit
def load_all_v_codes(lanes, L: tl.constexpr):
    """A page's codes where blocks share their bytes, to be loaded once; 8-bit codes are loaded by the block that wants them."""
    codes = ()
    if L.v_planes > 1:
        for sub in tl.static_range(L.v_blocks // L.v_planes):
            codes = codes + (load_v_codes(lanes, sub, L),)
    return codes


@triton.jit
def block_codes(lanes, codes, BLOCK: tl.constexpr, L: tl.constexpr):
    """The bytes of a block: one of `load_all_v_codes`, or loaded now."""
    if L.v_planes == 1:
        return load_v_codes(lanes, BLOCK, L)
    else:
        return codes[BLOCK % (L.v_blocks // L.v_planes)]


@triton.jit
def v_lane_page(page, L: tl.constexpr, PTX: tl.constexpr):
    """[8, 4]: where each lane's bytes of V begin."""
    PACK: tl.constexpr = min(4, L.v_padded // 8)
    word = tl.arange(0, 4)[None, :] * (4 * L.head_dim // L.v_planes) + tl.arange(0, 8)[:, None] * PACK
    return anchor(page + L.v_codes + word * 4, PACK * 4, PTX)


@triton.jit
def load_v_codes(lane_page, SUB: tl.constexpr, L: tl.constexpr):
    """uint8 [rest, 4, 8, 4, bytes], the SUB-th v_rows channels of every plane: quads of a lane, rows, lane, channels x 4 tokens."""
    WORDS: tl.constexpr = L.head_dim // L.v_planes
    PACK: tl.constexpr = min(4, L.v_padded // 8)
    REST: tl.constexpr = L.v_padded // 8 // PACK
    rest = tl.arange(0, REST)[:, None, None, None, None] * (8 * PACK)
    first = rest + tl.arange(0, 8)[None, None, :, None, None] * PACK
    quad = tl.arange(0, 4)[None, :, None, None, None]
    byte = tl.arange(0, 4 * PACK)[None, None, None, None, :]
    pointers = lane_page[None, None, :, :, None] + (quad * WORDS + SUB * L.v_rows + rest) * 4 + byte
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
