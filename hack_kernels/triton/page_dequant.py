"""Jitted attention over one coded page that dequantizes in registers: the yardstick, with page_scores.py's and page_values.py's loads.

Codes become float16 in the place where they lie in their byte: a byte permute for each pair, then for each field a mask with the exponent
of 1024. That 1024 stays in the products: 1024 times the sum of the other operand, by tensor cores as well, is taken off.
Powers of two and scales are folded into queries and weights, products are float16 with float32 sums.
"""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"
# ruff: noqa: RET505

from __future__ import annotations

import triton
import triton.language as tl

from .fragments import ROWS, all_parts, diagonal, stack_rows
from .packed import code_halves_in_place, multiply_halves, scale_halves
from .page_scores import fold_k_scale, multiply_parts, q_operand, token_order
from .page_values import block_codes, load_all_v_codes, load_scale_codes, v_lane_page, v_operand, w_operand


@triton.jit
def dequant_scores(page, queries, L: tl.constexpr, PTX: tl.constexpr):
    """As page_scores.page_scores, with steps of 1. `queries` are those of `prescale_queries`."""
    parts = all_parts(fold_k_scale(page, queries, L, PTX))
    scores = token_order(multiply_parts(parts, page, tl.float32, L, PTX))
    return scores, -1024.0 * _sum_parts(parts), tl.full((ROWS,), 1.0, tl.float32)


@triton.jit
def _sum_parts(parts):
    """float16 parts [ROWS, 4, 8] -> float32 [ROWS, 4], the same in all lanes, by the operands of `multiply_parts`."""
    COUNT: tl.constexpr = len(parts)
    ones = tl.full((32, 8), 1.0, tl.float16)
    if COUNT == 1:
        return diagonal(tl.dot(stack_rows(q_operand(parts[0]), tl.zeros((ROWS, 32), tl.float16)), ones))
    else:
        sums = tl.zeros((2 * ROWS, 8), tl.float32)
        for i in tl.static_range(0, COUNT, 2):
            sums = tl.dot(stack_rows(q_operand(parts[i]), q_operand(parts[i + 1])), ones, sums)
        return diagonal(sums)


@triton.jit
def prescale_queries(queries, L: tl.constexpr):
    """float16 [parts, rows, 4, 8] divided by the powers of two that codes carry where they lie."""
    plane = tl.arange(0, L.k_planes * L.k_chunks) // L.k_chunks
    return (queries.to(tl.float32) * tl.exp2(-(plane * L.k_bits).to(tl.float32))[:, None, None, None]).to(tl.float16)


@triton.jit
def weigh_dequant_values(out, w, share, page, L: tl.constexpr, PTX: tl.constexpr):
    """As page_values.weigh_values."""
    lanes = v_lane_page(page, L, PTX)
    codes = load_all_v_codes(lanes, L)
    new_out = ()
    for group in tl.static_range(L.v_groups):
        scale = scale_halves(load_scale_codes(page, group, L), PTX)[None, :, :]
        scaled = multiply_halves(w, tl.broadcast_to(scale, (ROWS, 4, 16)), PTX)
        halves = w_operand(scaled, L)
        start = tl.dot(tl.full((16, L.page_tokens), -1024.0, tl.float16), _pairs_operand(scaled, L))
        start = tl.broadcast_to(start[None, :, :], (L.v_padded // 16, 16, ROWS))
        start = tl.reshape(start, (L.v_padded, ROWS))
        for i in tl.static_range(L.v_blocks // L.v_groups):
            block = _weigh_block(
                out, lanes, codes, halves, start, share, group * (L.v_blocks // L.v_groups) + i, L, PTX
            )
            new_out = new_out + (block,)
    return new_out


@triton.jit
def _pairs_operand(w, L: tl.constexpr):
    """As page_values.w_operand, for operands that were never bytes: they have 2 tokens on end to a lane. The same pairs of registers."""
    return tl.reshape(tl.permute(tl.reshape(w, (ROWS, 4, 2, 2, 2, 2)), (2, 4, 3, 1, 5, 0)), (L.page_tokens, ROWS))


@triton.jit
def _weigh_block(out, lanes, codes, halves, start, share, BLOCK: tl.constexpr, L: tl.constexpr, PTX: tl.constexpr):
    SUBS: tl.constexpr = L.v_blocks // L.v_planes
    own = block_codes(lanes, codes, BLOCK, L)
    operand = v_operand(code_halves_in_place(own, L.v_bits, BLOCK // SUBS, PTX), L)
    return out[BLOCK] + tl.dot(operand, halves, start) * share[None, :]
