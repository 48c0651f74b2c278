"""Attention of one prefill chunk of one sequence: exact over what is prefilled, on codes over cached pages before it."""

from __future__ import annotations

from torch import Tensor

from .backend import implementation
from .checks import FLOATS, INDICES, check_format, check_heads, check_pool, check_range, check_tensor
from .page_format import PageFormat


def prefill_attention(
    fmt: PageFormat,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    pages: Tensor | None = None,
    page_slots: Tensor | None = None,
) -> Tensor:
    """Causal attention of the last `chunk` tokens of `exact_tokens`, and of pages that come before all of them.

    q                [chunk, heads, head_dim], float; query heads h * heads / kv_heads and on share KV head h
    k, v             [kv_heads, exact_tokens, head_dim] of q.dtype; query i sees the first exact_tokens - chunk + i + 1
    scale            the softmax scale
    pages            uint8 [num_slots, kv_heads, page_bytes], one layer's pool; with page_slots or not at all
    page_slots       int64 [n], pool slots that every query sees, whole, as decode does
    -> [chunk, heads, head_dim] of q.dtype

    Raises ValueError naming the bad argument; values are checked on the CPU alone.
    """
    check_format(fmt)
    check_tensor("q", q, ("chunk", "heads", fmt.head_dim), FLOATS)
    check_tensor("k", k, ("kv_heads", "exact_tokens", fmt.head_dim), (q.dtype,), q.device)
    check_tensor("v", v, tuple(k.shape), (q.dtype,), q.device)
    check_heads("q", q.shape[1], k.shape[0])
    if not 0 < q.shape[0] <= k.shape[1]:
        raise ValueError(f"q has a chunk of {q.shape[0]} tokens, not 1..{k.shape[1]}, the exact tokens of k")
    if (pages is None) != (page_slots is None):
        raise ValueError(f"{'pages' if pages is None else 'page_slots'} is missing: give both, or neither")
    if pages is not None and page_slots is not None:
        check_pool(fmt, pages, k.shape[0], q.device)
        check_tensor("page_slots", page_slots, ("n",), INDICES, q.device)
        check_range("page_slots", page_slots, 0, pages.shape[0] - 1)
    result: Tensor = implementation(q.device, "prefill_attention")(fmt, q, k, v, scale, pages, page_slots)
    return result
