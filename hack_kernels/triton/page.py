"""Jitted attention of some query rows over one coded page, as reference/history.py specifies it. Knows nothing of page tables.

Tensor-core fragments are written out in the tensors' dimensions, so that loads, products and conversions meet in the same lanes and no
value changes lanes between them: of a warp's 32 lanes, 4 ("a" below) share a row of an operand and hold 4 bytes each of its contracted
dimension, 8 hold different rows. Lane a owns tokens 16a..16a+15 of the page and a contiguous run of channels of each plane of K.

    scores    S = Q8 K^T     [rows, 64]: rows are the queries (padded to 16), the codes of K the B operand
    values    O^T = V^T W^T  [channels, rows]: the codes of V are the A operand, the queries the narrow side

Everything that is quantized passes through float16, scaled by powers of two so that it stays normal: q~ and w~ are off by at most 2**-11 of
themselves before rounding to int8 (hack_kernels/reference has float32). Scores are in units of log2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .dense import dot_terms, split_terms
from .packed import (
    code_field,
    code_field_in_place,
    in_place_weight,
    integer_halves,
    larger_halves,
    multiply_halves,
    quantize_halves,
    reciprocal,
    scale_halves,
    to_halves,
)

LOG2_E = tl.constexpr(1.4426950408889634)
_LEAST = tl.constexpr(127.0 / 65504.0)  # the least maximum whose inverse times 127 is a float16


@triton.jit
def first_of(x):
    """[..., 2] -> [...], what is at 0."""
    first, _second = tl.split(x)
    return first


@triton.jit
def pad_rows(x):
    """[rows, n] -> [max(rows, 16), n], zeros below."""
    if x.shape[0] >= 16:
        return x
    else:
        pair = tl.permute(tl.join(x, tl.zeros_like(x)), (2, 0, 1))
        return tl.reshape(pair, (2 * x.shape[0], x.shape[1]))


@triton.jit
def unpad_rows(x, ROWS: tl.constexpr):
    """[max(ROWS, 16), n] -> [ROWS, n]."""
    if ROWS >= 16:
        return x
    else:
        return first_of(tl.permute(tl.reshape(x, (2, ROWS, x.shape[1])), (1, 2, 0)))


@triton.jit
def largest(x, PTX: tl.constexpr):
    """float16 [rows, 4, n] -> float32 [rows], the largest magnitude."""
    if x.shape[2] <= 2:
        return tl.max(tl.max(tl.abs(x), 2).to(tl.float32), 1)
    else:
        first, second = tl.split(tl.permute(tl.reshape(x, (x.shape[0], 4, 2, x.shape[2] // 2)), (0, 1, 3, 2)))
        return largest(larger_halves(first, second, PTX), PTX)


@triton.jit
def largest_of_all(parts, PTX: tl.constexpr):
    top = parts[0]
    COUNT: tl.constexpr = len(parts)
    for i in tl.static_range(1, COUNT):
        top = larger_halves(top, parts[i], PTX)
    return largest(top, PTX)


@triton.jit
def split_parts(x):
    """[2 * n, a, b, c] -> its first and its last n parts."""
    pairs = tl.reshape(x, (2, x.shape[0] // 2, x.shape[1], x.shape[2], x.shape[3]))
    return tl.split(tl.permute(pairs, (1, 2, 3, 4, 0)))


@triton.jit
def all_parts(x):
    """[parts, rows, 4, n] -> that many tensors [rows, 4, n]."""
    if x.shape[0] == 1:
        return (tl.reshape(x, (x.shape[1], x.shape[2], x.shape[3])),)
    else:
        first, second = split_parts(x)
        return all_parts(first) + all_parts(second)


@triton.jit
def int8_factor(top, PTX: tl.constexpr):
    """The float16 by which numbers up to `top` in magnitude are multiplied before rounding to int8, and its inverse as float32."""
    factor = (127.0 * reciprocal(tl.maximum(top, _LEAST), PTX)).to(tl.float16)
    return factor, reciprocal(factor.to(tl.float32), PTX)


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
    return split_terms(
        tl.load(q + rows[:, None] * stride + channel[None, :], mask=mask, other=0.0), tl.bfloat16, TERMS
    )


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

    The contracted dimension goes over lanes as the compiler lays it: 8 bytes on end to a lane where rows were padded, else 4.
    """
    x = tl.reshape(codes, (2, 2, 8, 4, 4, 4))
    if ROWS >= 16:
        return tl.reshape(tl.permute(x, (0, 3, 5, 1, 4, 2)), (32, L.page_tokens))
    else:
        return tl.reshape(tl.permute(x, (3, 0, 5, 1, 4, 2)), (32, L.page_tokens))


@triton.jit
def q_operand(q, ROWS: tl.constexpr):
    """[ROWS, 4, 8] -> the operand [max(ROWS, 16), 32]."""
    if ROWS >= 16:
        return tl.reshape(tl.permute(tl.reshape(q, (ROWS, 4, 2, 4)), (0, 2, 1, 3)), (ROWS, 32))
    else:
        return pad_rows(tl.reshape(q, (ROWS, 32)))


@triton.jit
def token_order(scores, ROWS: tl.constexpr):
    """[max(ROWS, 16), 64] as the product leaves it -> [ROWS, 64] with the page's tokens in order, each in its lane."""
    x = tl.reshape(unpad_rows(scores, ROWS), (ROWS, 2, 4, 4, 2))
    return tl.reshape(tl.permute(x, (0, 3, 1, 4, 2)), (ROWS, 64))


@triton.jit
def page_scores(page, queries, L: tl.constexpr, ROWS: tl.constexpr, PTX: tl.constexpr):
    """<Q8, k_codes> float32 [ROWS, 64] (integers) and their step [ROWS]: step * 2**-5 * the query's scale is `a`."""
    parts = all_parts(fold_k_scale(page, queries, L, PTX))
    factor, step = int8_factor(largest_of_all(parts, PTX), PTX)
    factor = tl.broadcast_to(factor[:, None, None], (ROWS, 4, 8))
    scores = tl.zeros((max(ROWS, 16), L.page_tokens), tl.int32)
    total = tl.zeros((max(ROWS, 16),), tl.int32)
    for chunk in tl.static_range(L.k_chunks):
        codes = load_k_codes(page, chunk, L)
        for plane in tl.static_range(L.k_planes):
            q8 = q_operand(quantize_halves(parts[plane * L.k_chunks + chunk], factor, PTX), ROWS)
            scores = tl.dot(
                q8, k_operand(code_field(codes, L.k_bits, plane, PTX), L, ROWS), scores, out_dtype=tl.int32
            )
            if L.k_bits == 8:
                total += tl.sum(q8.to(tl.int32), 1)
    if L.k_bits == 8:
        scores += 128 * total[:, None]
    return token_order(scores, ROWS).to(tl.float32), step


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
    """uint8 of the SUB-th v_rows channels of every plane: [rest, 4, 8, 4, bytes]: 4 quads of tokens per lane a, 8 rows, channels x 4 tokens."""
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
            new_out = new_out + (
                _weigh_block(out, codes, w8, step, group * (L.v_blocks // L.v_groups) + i, L, PTX),
            )
    return new_out, new_offsets


@triton.jit
def _weigh_block(out, codes, w8, step, BLOCK: tl.constexpr, L: tl.constexpr, PTX: tl.constexpr):
    SUBS: tl.constexpr = L.v_blocks // L.v_planes
    operand = v_operand(code_field_in_place(codes[BLOCK % SUBS], L.v_bits, BLOCK // SUBS, PTX), L)
    product = tl.dot(operand, w8, out_dtype=tl.int32).to(tl.float32)
    return out[BLOCK] + product * (step / in_place_weight(L.v_bits, BLOCK // SUBS))[None, :]
