"""Torch's ways to attend to dense K and V, each in its fastest variant. Knows nothing of pages.

    sdpa     scaled_dot_product_attention as model code calls it, one row per query head: `enable_gqa`, or views expanded to
             all query heads, whichever is faster
    folded   the same function with the query heads of a KV head folded into rows of one query: the same result, but K and V
             are read once for all of them. Torch does not do this by itself; decode only
    matmul   softmax between two batched products, query heads folded, K as it lies or transposed, whichever is faster

Which is faster is tried on the last PROBE_TOKENS tokens, caches warm.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

PROBE_TOKENS = 2048
PROBE_REPEATS = 3

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v -> q's shape


@dataclass(frozen=True)
class Variant:
    """q and how it attends to k, v [batch, kv_heads, tokens, head_dim]; with `transposed`, k lies as [.., head_dim, tokens]."""

    note: str
    q: Tensor
    attend: Attend
    transposed: bool = False

    def lay_out(self, k: Tensor) -> Tensor:
        return k.mT.contiguous().mT if self.transposed else k


def fastest(kind: str, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Callable[[], Tensor], str]:
    """q [batch, heads, rows, head_dim] over k, v -> a function that gives [batch, heads, rows, head_dim], and the variant's name.

    With `causal`, the rows are the last tokens, and each sees itself and what is before it.
    """
    rows, tokens = q.shape[2], k.shape[2]
    mask = torch.ones(rows, tokens, dtype=torch.bool, device=k.device).tril_(tokens - rows) if causal else None
    variants = _variants(kind, q, k.shape[1], mask, scale)
    some = slice(-max(PROBE_TOKENS, rows), None)
    best = (
        min(variants, key=lambda variant: _probe(variant, k[:, :, some], v[:, :, some]))
        if variants[1:]
        else variants[0]
    )
    k = best.lay_out(k)
    return lambda: best.attend(best.q, k, v).reshape(q.shape), best.note


def _variants(kind: str, q: Tensor, kv_heads: int, mask: Tensor | None, scale: float) -> list[Variant]:
    folded = torch.unflatten(q, 1, (kv_heads, -1)).flatten(2, 3)  # [batch, kv_heads, heads / kv_heads * rows, head_dim]
    if kind == "sdpa":
        return [
            Variant("enable_gqa", q, partial(_sdpa_gqa, mask=mask, scale=scale)),
            Variant("expanded views", q, partial(_sdpa_expanded, mask=mask, scale=scale)),
        ]
    if kind == "folded":
        return [Variant("rows of one query", folded, partial(sdpa, scale=scale))]
    matmul = partial(_matmul, mask=mask, group=q.shape[1] // kv_heads)
    return [Variant(f"K {how}", folded * scale, matmul, how == "transposed") for how in ("as it lies", "transposed")]


def _sdpa_gqa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return sdpa(q, k, v, _last(mask, k), scale=scale, enable_gqa=True)


def _sdpa_expanded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    grouped = torch.unflatten(q, 1, (k.shape[1], -1))
    keys, values = (x.unsqueeze(2).expand(-1, -1, grouped.shape[2], -1, -1) for x in (k, v))
    return sdpa(grouped, keys, values, _last(mask, k), scale=scale)


def _matmul(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, group: int) -> Tensor:
    scores = q @ k.mT
    if (seen := _last(mask, k)) is not None:
        torch.unflatten(scores, 2, (group, -1)).masked_fill_(~seen, -torch.inf)
    return torch.softmax(scores, -1) @ v


def _last(mask: Tensor | None, k: Tensor) -> Tensor | None:
    """The mask of k's tokens where k is only the last of them."""
    return None if mask is None else mask[:, -k.shape[2] :]


def _probe(variant: Variant, k: Tensor, v: Tensor) -> float:
    """Seconds of one call, the fastest of a few."""
    k, v = variant.lay_out(k.contiguous()), v.contiguous()
    variant.attend(variant.q, k, v)
    return min(_seconds(lambda: variant.attend(variant.q, k, v), k) for _ in range(PROBE_REPEATS))


def _seconds(run: Callable[[], Tensor], on: Tensor) -> float:
    _synchronize(on)
    start = time.perf_counter()
    run()
    _synchronize(on)
    return time.perf_counter() - start


def _synchronize(on: Tensor) -> None:
    if on.is_cuda:
        torch.cuda.synchronize()
