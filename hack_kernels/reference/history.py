"""Attention over closed pages, on their codes: the specification that all back ends follow. Knows nothing of residuals or batches.

For one page, one KV head and one query q (already times the softmax scale); scales that vary along the contracted dimension
are folded into the other operand, which is then quantized symmetrically to int8:

    q~ = q * k_scale ~ a * Q8                      a = max|q~| / 127, one per page and query; Q8 = q~ / a, to the nearest
    score[t] = a * <Q8, k_codes[t]> + <q, k_min>
    w[t] = exp(score[t] - the page's own maximum)
    w~[t] = w[t] * v_scale[t, g] ~ b * W8          b = max w~ / 127, one per page, query and V group g; W8 in 0..127
    out[c] = b * <W8, v_codes[:, c]> + sum over t of w~[t] * v_zero[t, g(c)] * 2**(v_bits - 5)

The dot products of codes are exact integers: below 2**24, so a float32 product computes them without rounding in any order.
All else is float32. Raw pages are attended exactly. After HACK's 2026 code, without its code sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hack_kernels.page_format import PageFormat

from .close_pages import open_v_groups
from .codes import unpack_k_codes, unpack_v_codes
from .partial import Partial, attend_exact
from .scales import decode_scale

SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
MAX_TEMPORARY_BYTES = 64 * 1024 * 1024
QUERY_LEVELS = 127
MAX_EXACT_INTEGER = 2**24


def attend_history(fmt: PageFormat, start: Partial, q: Tensor, pages: Tensor, slots: Tensor, owner: Tensor) -> Partial:
    """`start` [batch, kv_heads, rows] with the pages `slots` (int64 [n]) of a layer's pool merged in, in bounded slices of pages.

    Page slots[i] is attended by entry owner[i] of q, float32 [batch, kv_heads, rows, head_dim] times the softmax scale.
    """
    attend = attend_raw_pages if fmt.raw else attend_coded_pages
    pages_per_slice = max(1, MAX_TEMPORARY_BYTES // _temporary_bytes(fmt, q))
    merged = start
    for first in range(0, slots.shape[0], pages_per_slice):
        some = slice(first, first + pages_per_slice)
        parts = attend(fmt, q.index_select(0, owner[some]), pages.index_select(0, slots[some]))
        merged = merged.merge(parts, owner[some])
    return merged


def attend_raw_pages(fmt: PageFormat, q: Tensor, pages: Tensor) -> Partial:
    """q [n, kv_heads, rows, head_dim] over raw pages [n, kv_heads, page_bytes], entry by entry."""
    return attend_exact(q, fmt.view(pages, "k").float(), fmt.view(pages, "v").float())


def attend_coded_pages(fmt: PageFormat, q: Tensor, pages: Tensor) -> Partial:
    """q [n, kv_heads, rows, head_dim] over coded pages [n, kv_heads, page_bytes], entry by entry."""
    assert fmt.k_bits is not None
    assert fmt.v_bits is not None
    assert QUERY_LEVELS * (2**fmt.k_bits - 1) * fmt.head_dim < MAX_EXACT_INTEGER
    assert QUERY_LEVELS * (2**fmt.v_bits - 1) * fmt.page_tokens < MAX_EXACT_INTEGER

    k_codes = unpack_k_codes(fmt.view(pages, "k_codes"), fmt.k_bits).float()
    k_scale = decode_scale(fmt.view(pages, "k_scale")).unsqueeze(-2)
    k_min = fmt.view(pages, "k_min").float().unsqueeze(-1)
    q_codes, step = quantize_symmetric(q * k_scale)
    scores = (q_codes @ k_codes.mT).mul_(step).add_(q @ k_min)  # [n, kv_heads, rows, page_tokens]

    top = scores.amax(-1)
    weights = scores.sub_(top.unsqueeze(-1)).exp_()
    return Partial(top, weights.sum(-1), _weigh_values(fmt, weights, pages, fmt.v_bits))


def _weigh_values(fmt: PageFormat, weights: Tensor, pages: Tensor, bits: int) -> Tensor:
    """weights [n, kv_heads, rows, page_tokens] -> the sums of w * v [n, kv_heads, rows, head_dim]."""
    v_codes = torch.unflatten(unpack_v_codes(fmt.view(pages, "v_codes"), bits).float(), -1, (fmt.v_groups, -1))
    v_codes = v_codes.transpose(-3, -2)  # [n, kv_heads, v_groups, page_tokens, group_channels]
    v_scale, v_offset = open_v_groups(fmt, pages)
    scaled = weights.unsqueeze(-3) * v_scale.unsqueeze(-2)  # [n, kv_heads, v_groups, rows, page_tokens]
    weight_codes, step = quantize_symmetric(scaled)
    on_codes = (weight_codes @ v_codes).mul_(step).transpose(-3, -2)  # [n, kv_heads, rows, v_groups, group_channels]
    on_zeros = (scaled @ v_offset.unsqueeze(-1)).squeeze(-1).mT  # [n, kv_heads, rows, v_groups]
    return (on_codes + on_zeros.unsqueeze(-1)).flatten(-2)


def quantize_symmetric(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integers in -127..127 (as float32) and their step [..., 1] along the last dimension: x ~ step * integers.

    A row whose step would be below the smallest normal number has step 1 and integers 0. NaN stays NaN.
    """
    step = x.abs().amax(-1, keepdim=True) / QUERY_LEVELS
    step = step.masked_fill_(step < SMALLEST_NORMAL, 1.0)
    return torch.round(x / step), step


def _temporary_bytes(fmt: PageFormat, q: Tensor) -> int:
    """About what one page of all KV heads needs at once: bytes and float32 codes of K or V, and float32 rows of queries."""
    _, kv_heads, rows, head_dim = q.shape
    values = 2 * fmt.page_tokens * head_dim * (1 + q.element_size())
    scores = rows * fmt.page_tokens * (2 + 2 * fmt.v_groups) * q.element_size()
    queries = rows * head_dim * 5 * q.element_size()
    return kv_heads * (fmt.page_bytes + values + scores + queries)
