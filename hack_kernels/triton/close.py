"""Jitted quantization of one block into a page, byte for byte as reference/close_pages.py specifies. Knows nothing of pools.

Compile with enable_fp_fusion=False: every float32 step is rounded by itself. Divisions are the correctly rounded ones.
"""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from hack_kernels.page_format import PageFormat
from hack_kernels.reference.close_pages import CLIP, MAX_ZERO, k_floor, v_floor

from .packed import FIRST_SCALE

_MAGIC = tl.constexpr(12582912.0)  # float32 numbers near it are 1 apart
_MAX_ZERO = tl.constexpr(float(MAX_ZERO))
V_TOKENS = tl.constexpr(16)  # of V at a time
K_CHANNELS = tl.constexpr(32)  # of each plane of K at a time


class Constants(NamedTuple):
    """What scale codes are made of: factor of a group's range, and of its middle."""

    k_range: tl.constexpr
    k_middle: tl.constexpr
    v_range: tl.constexpr
    v_middle: tl.constexpr


def constants_of(fmt: PageFormat) -> Constants:
    assert fmt.k_bits is not None
    assert fmt.v_bits is not None
    k_levels, v_levels = 2**fmt.k_bits - 1, 2**fmt.v_bits - 1
    factors = (CLIP[fmt.k_bits] / k_levels, k_floor(fmt.k_bits), CLIP[fmt.v_bits] / v_levels, v_floor(fmt.v_bits))
    return Constants(*(tl.constexpr(factor) for factor in factors))


@triton.jit
def close_block(k, v, page, token_stride, L: tl.constexpr, C: tl.constexpr):
    """k, v [64, head_dim] with rows token_stride elements apart -> the page's bytes."""
    PLANE: tl.constexpr = L.head_dim // L.k_planes
    for start in range(0, PLANE, K_CHANNELS):
        _close_k(k, page, token_stride, start, L, C)
    for start in range(0, L.page_tokens, V_TOKENS):
        _close_v(v, page, token_stride, start, L, C)


@triton.jit
def _close_k(k, page, token_stride, start, L: tl.constexpr, C: tl.constexpr):
    PLANE: tl.constexpr = L.head_dim // L.k_planes
    HALF: tl.constexpr = (2**L.k_bits - 1) / 2
    token = tl.arange(0, L.page_tokens)
    channel = start + tl.arange(0, K_CHANNELS)
    inside = channel < PLANE
    packed = tl.zeros((L.page_tokens, K_CHANNELS), tl.int32)
    for plane in tl.static_range(L.k_planes):
        at = plane * PLANE + channel
        x = tl.load(k + token[:, None] * token_stride + at[None, :], mask=inside[None, :], other=0.0).to(tl.float32)
        scale, middle = _scale_and_middle(x, 0, C.k_range, C.k_middle)
        step = _decode(scale)
        bits = _round_bf16(middle - step * HALF)
        minimum = (bits << 16).to(tl.float32, bitcast=True)
        codes = _codes(x, minimum[None, :], tl.div_rn(tl.full(step.shape, 1.0, tl.float32), step)[None, :], L.k_bits)
        packed = packed | (codes << (plane * L.k_bits))
        tl.store(page + L.k_scale + at, scale.to(tl.uint8), mask=inside)
        tl.store((page + L.k_min).to(tl.pointer_type(tl.uint16)) + at, (bits & 0xFFFF).to(tl.uint16), mask=inside)
    at = ((channel // 4)[None, :] * L.page_tokens + token[:, None]) * 4 + (channel % 4)[None, :]
    tl.store(page + at, packed.to(tl.uint8), mask=inside[None, :])


@triton.jit
def _close_v(v, page, token_stride, start, L: tl.constexpr, C: tl.constexpr):
    SUBS: tl.constexpr = L.v_blocks // L.v_planes
    token = start + tl.arange(0, V_TOKENS)
    minima, inverses = _close_v_groups(v, page, token_stride, token, L, C)
    row = tl.arange(0, L.v_padded)
    for sub in tl.static_range(SUBS):
        packed = tl.zeros((V_TOKENS, L.v_padded), tl.int32)
        for plane in tl.static_range(L.v_planes):
            x = _load_v(v, token_stride, token, (plane * SUBS + sub) * L.v_rows, L.v_rows, L.v_padded)
            codes = _codes(
                x,
                minima[(plane * SUBS + sub) * L.v_groups // L.v_blocks][:, None],
                inverses[(plane * SUBS + sub) * L.v_groups // L.v_blocks][:, None],
                L.v_bits,
            )
            packed = packed | (codes << (plane * L.v_bits))
        word = (token // 4)[:, None] * (L.head_dim // L.v_planes) + sub * L.v_rows + row[None, :]
        at = L.v_codes + word * 4 + (token % 4)[:, None]
        tl.store(page + at, packed.to(tl.uint8), mask=(row < L.v_rows)[None, :])


@triton.jit
def _close_v_groups(v, page, token_stride, token, L: tl.constexpr, C: tl.constexpr):
    """Scales and zeros of `token`'s groups, stored; and minima and inverse scales of each group [tokens]."""
    CHANNELS: tl.constexpr = L.head_dim // L.v_groups
    PADDED: tl.constexpr = L.v_padded_channels
    UNIT: tl.constexpr = 2.0 ** (L.v_bits - 5)
    HALF: tl.constexpr = (2**L.v_bits - 1) / 2
    minima = ()
    inverses = ()
    for group in tl.static_range(L.v_groups):
        x = _load_v(v, token_stride, token, group * CHANNELS, CHANNELS, PADDED)
        scale, middle = _scale_and_middle(x, 1, C.v_range, C.v_middle)
        step = _decode(scale)
        inverse = tl.div_rn(tl.full(step.shape, 1.0, tl.float32), step)
        zero = _round((middle - step * HALF) * (inverse * (1.0 / UNIT)))
        zero = tl.minimum(tl.maximum(tl.where(zero == zero, zero, 0.0), -_MAX_ZERO), _MAX_ZERO)
        at = group * L.page_tokens + token
        tl.store(page + L.v_scale + at, scale.to(tl.uint8))
        tl.store((page + L.v_zero).to(tl.pointer_type(tl.int8)) + at, zero.to(tl.int8))
        minima = minima + (zero * UNIT * step,)
        inverses = inverses + (inverse,)
    return minima, inverses


@triton.jit
def _load_v(v, token_stride, token, first, COUNT: tl.constexpr, PADDED: tl.constexpr):
    """float32 [tokens, PADDED]: COUNT channels from `first`; padding repeats the first of them, which changes no range."""
    row = tl.arange(0, PADDED)
    channel = first + tl.where(row < COUNT, row, 0)
    return tl.load(v + token[:, None] * token_stride + channel[None, :]).to(tl.float32)


@triton.jit
def _scale_and_middle(x, AXIS: tl.constexpr, RANGE: tl.constexpr, MIDDLE: tl.constexpr):
    """E5M3 codes (int32) and middles of x's groups along AXIS. A NaN reaches both."""
    nan = tl.sum((x != x).to(tl.int32), AXIS) > 0
    high = tl.where(nan, float("nan"), tl.max(x, AXIS))
    low = tl.where(nan, float("nan"), tl.min(x, AXIS))
    spread = (high - low) * RANGE
    middle = (high + low) * 0.5
    floor = tl.abs(middle) * MIDDLE
    larger = tl.where((spread > floor) | (spread != spread), spread, floor)
    bits = (larger.to(tl.int32, bitcast=True) & 0x7FFFFFFF) - FIRST_SCALE
    code = (bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20
    return tl.minimum(tl.maximum(code, 0), 255), middle


@triton.jit
def _decode(code):
    return ((code << 20) + FIRST_SCALE).to(tl.float32, bitcast=True)


@triton.jit
def _codes(x, minimum, inverse, BITS: tl.constexpr):
    code = _round((x - minimum) * inverse)
    code = tl.where(code == code, code, 0.0)
    return tl.minimum(tl.maximum(code, 0.0), 2.0**BITS - 1).to(tl.int32)


@triton.jit
def _round(x):
    """To the nearest integer, ties to even, where it is below 2**22; what is larger stays larger."""
    return (x + _MAGIC) - _MAGIC


@triton.jit
def _round_bf16(x):
    """The bits of float32 x as bf16, to the nearest (ties to even), in the low half; one NaN of the many."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(x == x, rounded, 0x7FC0)
