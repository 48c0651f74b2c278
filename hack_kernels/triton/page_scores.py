"""Jitted scores of query rows against one coded page, S = Q8 K^T: the codes of K are the B operand. See reference/history.py.

Scores are in units of log2 once multiplied by the steps. Knows nothing of page tables.
"""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"
# ruff: noqa: RET505, SIM108

from __future__ import annotations

import triton
import triton.language as tl

from .dense import dot_terms, split_terms
from .fragments import all_parts, first_of, int8_factor, largest_of_all, stack_rows, unstack_rows
from .packed import code_field, code_halves_in_place, multiply_halves, quantize_halves, scale_halves, to_halves

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
def load_bias_queries(q, stride, rows, valid, L: tl.constexpr, TERMS: tl.constexpr):
    """Queries [rows, padded_dim], rows at least 16, as TERMS bf16 tensors that add up to them, channels in the order of `page_bias`."""
    WIDTH: tl.constexpr = L.padded_dim // 4
    k = tl.arange(0, L.padded_dim)
    channel = ((k // 2) % 4) * WIDTH + (k // 16) * 4 + ((k // 8) % 2) * 2 + k % 2
    mask = valid[:, None] & (channel < L.head_dim)[None, :]
    return split_terms(tl.load(q + rows[:, None] * stride + channel[None, :], mask=mask, other=0.0), tl.bfloat16, TERMS)


@triton.jit
def page_bias(page, queries, L: tl.constexpr, ROWS: tl.constexpr, PTX: tl.constexpr):
    """<q, k_min> [ROWS]: a product with k_min as every column of the B operand, so no lane converts or reduces it."""
    WIDTH: tl.constexpr = L.padded_dim // 4
    STEP: tl.constexpr = 8
    step = tl.arange(0, WIDTH // STEP)[:, None, None, None] * STEP
    channel = step + tl.arange(0, 4)[None, None, :, None] * WIDTH + tl.arange(0, STEP)[None, None, None, :]
    channel = channel + tl.arange(0, 8)[None, :, None, None] * 0
    pointers = (page + L.k_min).to(tl.pointer_type(tl.bfloat16)) + channel
    if L.padded_dim == L.head_dim:
        minima = tl.load(pointers)
    else:
        minima = tl.load(pointers, mask=channel < L.head_dim, other=0.0)
    minima = tl.permute(tl.reshape(minima, (WIDTH // STEP, 8, 4, 2, 2, 2)), (0, 3, 4, 2, 5, 1))
    minima = tl.reshape(minima, (L.padded_dim, 8))
    bias = dot_terms(queries, minima, PTX)
    bias = tl.max(bias, 1)  # all columns are equal
    if ROWS < 16:
        return first_of(tl.permute(tl.reshape(bias, (2, ROWS)), (1, 0)))
    else:
        return bias


@triton.jit
def page_scores(page, queries, L: tl.constexpr, ROWS: tl.constexpr, PTX: tl.constexpr):
    """<Q8, k_codes> float32 [ROWS, 64] (integers) and their step [ROWS]: step * 2**-5 * the query's scale is `a`."""
    parts = all_parts(fold_k_scale(page, queries, L, PTX))
    factor, step = int8_factor(largest_of_all(parts, PTX), PTX)
    factor = tl.broadcast_to(factor[:, None, None], (ROWS, 4, 8))
    q8 = ()
    for i in tl.static_range(L.k_planes * L.k_chunks):
        q8 = q8 + (quantize_halves(parts[i], factor, PTX),)
    codes = ()
    for chunk in tl.static_range(L.k_chunks):
        codes = codes + (load_k_codes(page, chunk, L),)
    scores = multiply_parts(q8, codes, tl.int32, L, ROWS, PTX)
    if L.k_bits == 8:
        scores += 128 * sum_parts(q8)[:, None]
    return token_order(scores, ROWS).to(tl.float32), step


@triton.jit
def multiply_parts(q, codes, DTYPE: tl.constexpr, L: tl.constexpr, ROWS: tl.constexpr, PTX: tl.constexpr):
    """Products of all parts of queries [ROWS, 4, 8] with their codes, added up: [ROWS, 64] of DTYPE (float32 where dequantizing).

    An operand has 16 rows. Fewer queries than that are stacked, two parts in one operand, which is multiplied with the codes of either;
    half of each product counts. Rows of zeros would cost as many products, and moves beside them.
    """
    first = tl.zeros((max(ROWS, 16), L.page_tokens), DTYPE)
    if ROWS >= 16:
        for chunk in tl.static_range(L.k_chunks):
            for plane in tl.static_range(L.k_planes):
                operand = q_operand(q[plane * L.k_chunks + chunk], ROWS)
                first = tl.dot(operand, _expand(codes[chunk], plane, DTYPE, L, ROWS, PTX), first, out_dtype=DTYPE)
        return first
    elif len(q) == 1:
        operand = stack_rows(q_operand(q[0], ROWS), tl.zeros((ROWS, 32), q[0].dtype))
        return unstack_rows(tl.dot(operand, _expand(codes[0], 0, DTYPE, L, ROWS, PTX), first, out_dtype=DTYPE))[0]
    else:
        second = tl.zeros((16, L.page_tokens), DTYPE)
        if L.k_planes == 1:
            for chunk in tl.static_range(0, L.k_chunks, 2):
                operand = stack_rows(q_operand(q[chunk], ROWS), q_operand(q[chunk + 1], ROWS))
                first = tl.dot(operand, _expand(codes[chunk], 0, DTYPE, L, ROWS, PTX), first, out_dtype=DTYPE)
                second = tl.dot(operand, _expand(codes[chunk + 1], 0, DTYPE, L, ROWS, PTX), second, out_dtype=DTYPE)
        else:
            for chunk in tl.static_range(L.k_chunks):
                for plane in tl.static_range(0, L.k_planes, 2):
                    part = q_operand(q[plane * L.k_chunks + chunk], ROWS)
                    operand = stack_rows(part, q_operand(q[(plane + 1) * L.k_chunks + chunk], ROWS))
                    first = tl.dot(operand, _expand(codes[chunk], plane, DTYPE, L, ROWS, PTX), first, out_dtype=DTYPE)
                    other = _expand(codes[chunk], plane + 1, DTYPE, L, ROWS, PTX)
                    second = tl.dot(operand, other, second, out_dtype=DTYPE)
        return unstack_rows(first)[0] + unstack_rows(second)[1]


@triton.jit
def _expand(codes, PLANE: tl.constexpr, DTYPE: tl.constexpr, L: tl.constexpr, ROWS: tl.constexpr, PTX: tl.constexpr):
    if tl.int32 == DTYPE:
        return k_operand(code_field(codes, L.k_bits, PLANE, PTX), L, ROWS)
    else:
        return k_operand(code_halves_in_place(codes, L.k_bits, PLANE, PTX), L, 16)


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
def load_k_codes(page, CHUNK: tl.constexpr, L: tl.constexpr):
    """uint8 [2, 2, 8, 4, 16] of a chunk of K's channels: odd words, token bit 3, token bits 4, 5 and 2, lane, 4 tokens of 4 channels."""
    WORDS: tl.constexpr = L.head_dim // L.k_planes // 4
    odd = tl.arange(0, 2)[:, None, None, None, None]
    word = CHUNK * 8 + tl.arange(0, 4)[None, None, None, :, None] * 2 + odd
    row = tl.arange(0, 8)[None, None, :, None, None]
    token = (row // 2) * 16 + tl.arange(0, 2)[None, :, None, None, None] * 8 + (row % 2) * 4
    pointers = page + (word * L.page_tokens + token) * 4 + tl.arange(0, 16)[None, None, None, None, :]
    if L.k_chunks * 8 == WORDS:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=word < WORDS, other=0)


@triton.jit
def k_operand(codes, L: tl.constexpr, ROWS: tl.constexpr):
    """Expanded codes as `load_k_codes` lays them -> the operand [32, 64] with tokens in the order of `token_order`.

    The contracted dimension goes over lanes as the compiler lays it: 8 bytes on end to a lane where int8 rows were stacked, else 4 numbers.
    """
    x = tl.reshape(codes, (2, 2, 8, 4, 4, 4))
    if ROWS >= 16:
        return tl.reshape(tl.permute(x, (0, 3, 5, 1, 4, 2)), (32, L.page_tokens))
    else:
        return tl.reshape(tl.permute(x, (3, 0, 5, 1, 4, 2)), (32, L.page_tokens))


@triton.jit
def q_operand(q, ROWS: tl.constexpr):
    """[ROWS, 4, 8] -> the operand, or half of it, [ROWS, 32]."""
    if ROWS >= 16 or q.dtype == tl.float16:
        return tl.reshape(tl.permute(tl.reshape(q, (ROWS, 4, 2, 4)), (0, 2, 1, 3)), (ROWS, 32))
    else:
        return tl.reshape(q, (ROWS, 32))


@triton.jit
def token_order(scores, ROWS: tl.constexpr):
    """[ROWS, 64] as the product leaves it, with the page's tokens in order, each in its lane."""
    x = tl.reshape(scores, (ROWS, 2, 4, 4, 2))
    return tl.reshape(tl.permute(x, (0, 3, 1, 4, 2)), (ROWS, 64))
