"""Jitted attention over one coded page that dequantizes in registers: the yardstick, with page_scores.py's and page_values.py's loads.

Codes become float16 in the place where they lie in their byte: a byte permute for each pair, then a mask with the exponent of 1024 and an
addition for each field. Powers of two and scales are folded into queries and weights, products are float16 with float32 sums.
"""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"

from __future__ import annotations

import triton
import triton.language as tl

from .fragments import all_parts
from .packed import code_halves_in_place, multiply_halves, to_halves
from .page_scores import fold_k_scale, load_k_codes, multiply_parts, token_order
from .page_values import load_v_codes, load_v_offset, load_v_scale, v_operand, w_halves_operand, w_operand


@triton.jit
def dequant_scores(page, queries, L: tl.constexpr, ROWS: tl.constexpr, PTX: tl.constexpr):
    """<q~, k_codes> float32 [ROWS, 64] and its step, 1. `queries` are those of `prescale_queries`."""
    codes = ()
    for chunk in tl.static_range(L.k_chunks):
        codes = codes + (load_k_codes(page, chunk, L),)
    scores = multiply_parts(all_parts(fold_k_scale(page, queries, L, PTX)), codes, tl.float32, L, ROWS, PTX)
    return token_order(scores, ROWS), tl.full((ROWS,), 1.0, tl.float32)


@triton.jit
def prescale_queries(queries, L: tl.constexpr):
    """float16 [parts, rows, 4, 8] divided by the powers of two that codes carry where they lie."""
    plane = tl.arange(0, L.k_planes * L.k_chunks) // L.k_chunks
    return (queries.to(tl.float32) * tl.exp2(-(plane * L.k_bits).to(tl.float32))[:, None, None, None]).to(tl.float16)


@triton.jit
def weigh_dequant_values(out, offsets, w, share, page, L: tl.constexpr, ROWS: tl.constexpr, PTX: tl.constexpr):
    """As page_values.weigh_values."""
    weights = to_halves(tl.reshape(w, (ROWS, 4, 16)), PTX)
    codes = ()
    for sub in tl.static_range(L.v_blocks // L.v_planes):
        codes = codes + (load_v_codes(page, sub, L),)
    new_out = ()
    new_offsets = ()
    for group in tl.static_range(L.v_groups):
        scaled = multiply_halves(weights, load_v_scale(page, group, L, ROWS, PTX), PTX)
        on_zeros = tl.dot(load_v_offset(page, group, 0.0, L, PTX), w_halves_operand(scaled, L, ROWS))
        halves = w_operand(scaled, L, ROWS)
        new_offsets = new_offsets + (offsets[group] + on_zeros * (share * (2.0 ** (L.v_bits - 10)))[None, :],)
        for i in tl.static_range(L.v_blocks // L.v_groups):
            new_out = new_out + (
                _weigh_block(out, codes, halves, share, group * (L.v_blocks // L.v_groups) + i, L, PTX),
            )
    return new_out, new_offsets


@triton.jit
def _weigh_block(out, codes, halves, share, BLOCK: tl.constexpr, L: tl.constexpr, PTX: tl.constexpr):
    SUBS: tl.constexpr = L.v_blocks // L.v_planes
    PLANE: tl.constexpr = BLOCK // SUBS
    operand = v_operand(code_halves_in_place(codes[BLOCK % SUBS], L.v_bits, PLANE, PTX), L)
    return out[BLOCK] + tl.dot(operand, halves) * (share * (2.0 ** (-5 - PLANE * L.v_bits)))[None, :]
