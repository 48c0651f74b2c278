"""Jitted <q, k_min> of one coded page: a tensor-core product, so that no lane converts or reduces minima. See reference/history.py."""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"
# ruff: noqa: SIM108

from __future__ import annotations

import triton
import triton.language as tl

from .dense import dot_terms, split_terms
from .fragments import ROWS, diagonal


@triton.jit
def load_bias_queries(q, stride, rows, valid, L: tl.constexpr, TERMS: tl.constexpr):
    """Queries as TERMS bf16 tensors [16, padded_dim / 2] that add up to them, their first half of channels stacked on the second.

    Channels are in the order of `page_bias`.
    """
    HALF: tl.constexpr = L.padded_dim // 2
    k = tl.arange(0, HALF)
    channel = ((k // 2) % 4) * (HALF // 4) + (k // 16) * 4 + ((k // 8) % 2) * 2 + k % 2
    channel = tl.arange(0, 2)[:, None, None] * HALF + channel[None, None, :]
    mask = valid[None, :, None] & (channel < L.head_dim)
    x = tl.load(q + rows[None, :, None] * stride + channel, mask=mask, other=0.0)
    return split_terms(tl.reshape(x, (2 * ROWS, HALF)), tl.bfloat16, TERMS)


@triton.jit
def page_bias(page, queries, L: tl.constexpr, PTX: tl.constexpr):
    """<q, k_min> [ROWS, 4], the same in all lanes: even columns of the B operand are k_min's first half, odd ones its second."""
    HALF: tl.constexpr = L.padded_dim // 2
    WIDTH: tl.constexpr = HALF // 4  # channels of a lane
    STEP: tl.constexpr = min(WIDTH, 8)
    step = tl.arange(0, WIDTH // STEP)[:, None, None, None] * STEP
    half = tl.arange(0, 8)[None, :, None, None] % 2 * HALF
    channel = half + step + tl.arange(0, 4)[None, None, :, None] * WIDTH + tl.arange(0, STEP)[None, None, None, :]
    pointers = (page + L.k_min).to(tl.pointer_type(tl.bfloat16)) + channel
    if L.padded_dim == L.head_dim:
        minima = tl.load(pointers)
    else:
        minima = tl.load(pointers, mask=channel < L.head_dim, other=0.0)
    minima = tl.permute(tl.reshape(minima, (WIDTH // STEP, 8, 4, STEP // 4, 2, 2)), (0, 3, 4, 2, 5, 1))
    return diagonal(dot_terms(queries, tl.reshape(minima, (HALF, 8)), PTX))
