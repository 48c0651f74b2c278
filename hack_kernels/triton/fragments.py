"""Tensor-core fragments written out in tensors' dimensions: the conventions that page_scores.py and page_values.py share.

Of a warp's 32 lanes, 4 share a row of an operand and hold 4 or 8 consecutive bytes each of its contracted dimension, 8 hold different
rows. Loads are shaped so that they put every byte into the lane that multiplies it, and hardly a value changes lanes. Tensors
[.., rows, 4, n] have those 4 lanes as their second last dimension. Lane a owns tokens 16a..16a+15 of a page, and of each chunk of 32
channels of a plane of K the 8 from 8a on.

What is quantized to int8 passes through float16, scaled by powers of two so that it stays normal: it is off by at most 2**-11 of itself
before it is rounded (hack_kernels/reference has float32).
"""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"
# ruff: noqa: RET505

from __future__ import annotations

import triton
import triton.language as tl

from .packed import larger_halves, reciprocal

ROWS = tl.constexpr(8)  # query rows of a program: the narrow side of a product, half the rows of an operand
_LEAST = tl.constexpr(127.0 / 65504.0)  # the least maximum whose inverse times 127 is a float16


@triton.jit
def first_of(x):
    """[..., 2] -> [...], what is at 0."""
    first, _second = tl.split(x)
    return first


@triton.jit
def stack_rows(x, y):
    """[8, n] twice -> [16, n], the rows of a tensor-core operand."""
    return tl.reshape(tl.permute(tl.join(x, y), (2, 0, 1)), (16, x.shape[1]))


@triton.jit
def unstack_rows(x):
    """[16, n] -> [8, n], its first rows and its last."""
    return tl.split(tl.permute(tl.reshape(x, (2, 8, x.shape[1])), (1, 2, 0)))


@triton.jit
def diagonal(x):
    """[16, 8] -> [8, 4]: the even columns of its first rows plus the odd columns of its last."""
    even, odd = tl.split(tl.permute(tl.reshape(x, (2, ROWS, 4, 2)), (1, 2, 0, 3)))
    first, _ = tl.split(even)
    _, last = tl.split(odd)
    return first + last


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
    """[parts, a, b, c] -> that many tensors [a, b, c]."""
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
