"""Jitted scores of query rows against one coded page, S = Q8 K^T: the codes of K are the B operand. See reference/history.py.

Scores are in units of log2 once multiplied by the steps. Knows nothing of page tables.
"""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"
# ruff: noqa: RET505

from __future__ import annotations

import triton
import triton.language as tl

from .fragments import ROWS, all_parts, int8_factor, largest_of_all, stack_rows, unstack_rows
from .packed import anchor, code_field, code_halves_in_place, multiply_halves, quantize_halves, scale_halves, to_halves

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_queries(q, stride, rows, valid, L: tl.constexpr, PTX: tl.constexpr):
    """Queries at q + rows * stride (masked by `valid`) for `page_scores`: float16 [parts, rows, 4, 8], and powers of two [rows]

    that they were divided by.
    """
    dims = tl.arange(0, L.padded_dim)
    whole = tl.load(
        q + rows[:, None] * stride + dims[None, :], mask=valid[:, None] & (dims < L.head_dim)[None, :], other=0.0
    )
    top = tl.max(tl.abs(whole.to(tl.float32)), 1).to(tl.int32, bitcast=True)
    power = (top & 0x7F800000) + 0x00800000  # bits of the power of two above
    inverse = (0x7F000000 - power).to(tl.float32, bitcast=True)
    channel, within = lane_channels(L)
    pointers = q + rows[None, :, None, None] * stride + channel[:, None, :, :]
    x = tl.load(pointers, mask=valid[None, :, None, None] & within[:, None, :, :], other=0.0).to(tl.float32)
    return to_halves(x * inverse[None, :, None, None], PTX), power.to(tl.float32, bitcast=True)


@triton.jit
def lane_channels(L: tl.constexpr):
    """[parts, 4, 8]: the channels that each lane owns of each part (chunk of a plane), and which of them exist."""
    PLANE: tl.constexpr = L.head_dim // L.k_planes
    part = tl.arange(0, L.k_planes * L.k_chunks)[:, None, None]
    in_plane = part % L.k_chunks * 32 + tl.arange(0, 4)[None, :, None] * 8 + tl.arange(0, 8)[None, None, :]
    return part // L.k_chunks * PLANE + in_plane, in_plane < PLANE


@triton.jit
def page_scores(page, queries, L: tl.constexpr, PTX: tl.constexpr):
    """<Q8, codes> float32 [ROWS, 64] (integers), what all dots of a row lack [ROWS, 1], their step [ROWS].

    step * 2**-5 * the query's scale is `a`. Codes are those of `code_field`: 8-bit codes lack 128, which the second result makes up for.
    """
    parts = all_parts(fold_k_scale(page, queries, L, PTX))
    factor, step = int8_factor(largest_of_all(parts, PTX), PTX)
    factor = tl.broadcast_to(factor[:, None, None], (ROWS, 4, 8))
    q8 = ()
    for i in tl.static_range(L.k_planes * L.k_chunks):
        q8 = q8 + (quantize_halves(parts[i], factor, PTX),)
    scores = token_order(multiply_parts(q8, page, tl.int32, L, PTX)).to(tl.float32)
    if L.k_bits == 8:
        return scores, 128.0 * sum_parts(q8).to(tl.float32)[:, None], step
    else:
        return scores, 0.0, step


@triton.jit
def multiply_parts(q, page, DTYPE: tl.constexpr, L: tl.constexpr, PTX: tl.constexpr):
    """Products of all parts of queries [ROWS, 4, 8] with the page's codes, added up: [ROWS, 64] of DTYPE (float32 where dequantizing).

    An operand has 16 rows: two parts are stacked in one, which is multiplied with the codes of either; half of each product counts.
    Rows of zeros would cost as many products, and moves beside them.
    """
    lanes = k_lane_page(page, L, PTX)
    first = tl.zeros((16, L.page_tokens), DTYPE)
    if len(q) == 1:
        operand = stack_rows(q_operand(q[0]), tl.zeros((ROWS, 32), q[0].dtype))
        product = tl.dot(operand, _expand(load_k_codes(lanes, 0, L), 0, DTYPE, L, PTX), first, out_dtype=DTYPE)
        return unstack_rows(product)[0]
    else:
        second = tl.zeros((16, L.page_tokens), DTYPE)
        if L.k_planes == 1:
            for chunk in tl.static_range(0, L.k_chunks, 2):
                operand = stack_rows(q_operand(q[chunk]), q_operand(q[chunk + 1]))
                codes = _expand(load_k_codes(lanes, chunk, L), 0, DTYPE, L, PTX)
                first = tl.dot(operand, codes, first, out_dtype=DTYPE)
                other = _expand(load_k_codes(lanes, chunk + 1, L), 0, DTYPE, L, PTX)
                second = tl.dot(operand, other, second, out_dtype=DTYPE)
        else:
            for chunk in tl.static_range(L.k_chunks):
                codes = load_k_codes(lanes, chunk, L)
                for plane in tl.static_range(0, L.k_planes, 2):
                    part = q_operand(q[plane * L.k_chunks + chunk])
                    operand = stack_rows(part, q_operand(q[(plane + 1) * L.k_chunks + chunk]))
                    first = tl.dot(operand, _expand(codes, plane, DTYPE, L, PTX), first, out_dtype=DTYPE)
                    second = tl.dot(operand, _expand(codes, plane + 1, DTYPE, L, PTX), second, out_dtype=DTYPE)
        return unstack_rows(first)[0] + unstack_rows(second)[1]


@triton.jit
def _expand(codes, PLANE: tl.constexpr, DTYPE: tl.constexpr, L: tl.constexpr, PTX: tl.constexpr):
    if tl.int32 == DTYPE:
        return k_operand(code_field(codes, L.k_bits, PLANE, PTX), L)
    else:
        return k_operand(code_halves_in_place(codes, L.k_bits, PLANE, PTX), L)


@triton.jit
def sum_parts(q):
    """int8 parts [rows, 4, 8] -> int32 [rows]."""
    COUNT: tl.constexpr = len(q)
    total = tl.sum(tl.sum(q[0].to(tl.int32), 2), 1)
    for i in tl.static_range(1, COUNT):
        total += tl.sum(tl.sum(q[i].to(tl.int32), 2), 1)
    return total


@triton.jit
def fold_k_scale(page, q, L: tl.constexpr, PTX: tl.constexpr):
    """q * k_scale * 2**5, float16 [parts, rows, 4, 8]."""
    channel, within = lane_channels(L)
    if L.k_chunks * L.k_planes * 32 == L.head_dim:
        codes = tl.load(page + L.k_scale + channel)
    else:
        codes = tl.load(page + L.k_scale + channel, mask=within, other=0)
    return multiply_halves(q, tl.broadcast_to(scale_halves(codes, PTX)[:, None, :, :], q.shape), PTX)


@triton.jit
def k_lane_page(page, L: tl.constexpr, PTX: tl.constexpr):
    """[8, 4]: where each lane's bytes of the first chunk begin."""
    row = tl.arange(0, 8)[:, None]
    lane = tl.arange(0, 4)[None, :] * (2 * L.page_tokens) + (row // 2) * 16 + (row % 2) * 4
    return anchor(page + lane * 4, 16, PTX)


@triton.jit
def load_k_codes(lane_page, CHUNK: tl.constexpr, L: tl.constexpr):
    """uint8 [2, 2, 8, 4, 16] of a chunk of K's channels: odd words, token bit 3, token bits 4, 5 and 2, lane, 4 tokens of 4 channels."""
    WORDS: tl.constexpr = L.head_dim // L.k_planes // 4
    odd = tl.arange(0, 2)[:, None, None, None, None]
    word = CHUNK * 8 + tl.arange(0, 4)[None, None, None, :, None] * 2 + odd
    offset = (CHUNK * 8 + odd) * L.page_tokens + tl.arange(0, 2)[None, :, None, None, None] * 8
    pointers = lane_page[None, None, :, :, None] + offset * 4 + tl.arange(0, 16)[None, None, None, None, :]
    if L.k_chunks * 8 == WORDS:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=word < WORDS, other=0)


@triton.jit
def k_operand(codes, L: tl.constexpr):
    """Expanded codes as `load_k_codes` lays them -> the operand [32, 64] with tokens in the order of `token_order`.

    The contracted dimension goes over lanes as the compiler lays it: 8 bytes on end to a lane of int8, 4 numbers of float16.
    """
    x = tl.reshape(codes, (2, 2, 8, 4, 4, 4))
    if codes.dtype == tl.float16:
        return tl.reshape(tl.permute(x, (0, 3, 5, 1, 4, 2)), (32, L.page_tokens))
    else:
        return tl.reshape(tl.permute(x, (3, 0, 5, 1, 4, 2)), (32, L.page_tokens))


@triton.jit
def q_operand(q):
    """[ROWS, 4, 8] -> the operand, or half of it, [ROWS, 32]."""
    if q.dtype == tl.float16:
        return tl.reshape(tl.permute(tl.reshape(q, (ROWS, 4, 2, 4)), (0, 2, 1, 3)), (ROWS, 32))
    else:
        return tl.reshape(q, (ROWS, 32))


@triton.jit
def token_order(scores):
    """[ROWS, 64] as the product leaves it, with the page's tokens in order, each in its lane."""
    x = tl.reshape(scores, (ROWS, 2, 4, 4, 2))
    return tl.reshape(tl.permute(x, (0, 3, 1, 4, 2)), (ROWS, 64))
