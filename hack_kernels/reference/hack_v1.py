"""The layout of HACK's first version (arXiv, 2025; section 1 onwards), for comparison: quantize one sequence and attend to it.

Every matrix is quantized asymmetrically along its contracted dimension, in partitions of 64: Q and K along head_dim, P (the
softmax's output) and V along the tokens. K and V have few bits, optionally with stochastic rounding; Q and P have 8 and are
transient. The product of A ~ s_a A' + m_a and B ~ s_b B' + m_b is computed on the codes, per partition of size n:

    s_a s_b <A', B'>  +  m_b s_a sum(A')  +  m_a s_b sum(B')  +  n m_a m_b

(its equation 3), with the sums of K's and V's codes stored. V's newest tokens that fill no partition stay as they are. Scale and
minimum of K and V are 16-bit. Knows nothing of pages: this layout is not served.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PARTITION = 64
QUERY_BITS = 8


@dataclass(frozen=True)
class Partitioned:
    """A matrix [..., rows, n] in partitions of `size` along its last, contracted dimension; n = partitions * size."""

    codes: Tensor  # uint8 [..., rows, partitions, size]
    scale: Tensor  # float32, or float16 where it is stored [..., rows, partitions]
    minimum: Tensor  # as scale
    sums: Tensor  # int16 [..., rows, partitions], of the codes

    def dequantize(self) -> Tensor:
        """float32 [..., rows, n]."""
        values = self.codes.float() * self.scale.float().unsqueeze(-1) + self.minimum.float().unsqueeze(-1)
        return values.flatten(-2)


@dataclass(frozen=True)
class Cache:
    """K and V of one sequence and layer."""

    k: Partitioned  # rows: tokens, contracted: head_dim
    v: Partitioned  # rows: channels, contracted: the tokens that fill partitions
    v_tail: Tensor  # [kv_heads, fewer than a partition's tokens, head_dim], exact

    @property
    def num_tokens(self) -> int:
        return self.k.codes.shape[-3]


def quantize(k: Tensor, v: Tensor, bits: int = 2, generator: torch.Generator | None = None) -> Cache:
    """k, v [kv_heads, tokens, head_dim]; rounding is stochastic where a generator is given, else to the nearest.

    K's partition is the largest divisor of head_dim that is at most 64.
    """
    head_dim, whole = k.shape[-1], v.shape[-2] // PARTITION * PARTITION
    channels = max(n for n in range(1, PARTITION + 1) if head_dim % n == 0)
    return Cache(
        partition(k.float(), bits, channels, torch.float16, generator),
        partition(v[:, :whole].float().mT, bits, PARTITION, torch.float16, generator),
        v[:, whole:],
    )


def attend(cache: Cache, q: Tensor, scale: float) -> Tensor:
    """Causal attention of the sequence's last tokens: q [queries, heads, head_dim] -> the same shape and dtype."""
    queries, kv_heads, tokens = q.shape[0], cache.k.codes.shape[0], cache.num_tokens
    rows = torch.unflatten((q.float() * scale).transpose(0, 1), 0, (kv_heads, -1)).flatten(1, 2)
    seen = torch.ones(queries, tokens, dtype=torch.bool, device=q.device).tril_(tokens - queries)
    scores = multiply(partition(rows, QUERY_BITS, cache.k.codes.shape[-1]), cache.k)  # [kv_heads, rows, tokens]
    probabilities = scores.masked_fill_(~seen.repeat(rows.shape[1] // queries, 1), -torch.inf).softmax(-1)

    whole = tokens - cache.v_tail.shape[-2]
    out = probabilities[..., whole:] @ cache.v_tail.float()
    if whole:
        out += multiply(partition(probabilities[..., :whole], QUERY_BITS, PARTITION), cache.v)
    return torch.unflatten(out, 1, (-1, queries)).flatten(0, 1).transpose(0, 1).to(q.dtype)


def partition(
    x: Tensor, bits: int, size: int, stored: torch.dtype = torch.float32, generator: torch.Generator | None = None
) -> Partitioned:
    """Quantize float32 x [..., rows, n] in partitions of `size` along n; scale and minimum are rounded to `stored` first."""
    levels = 2**bits - 1
    parts = torch.unflatten(x, -1, (-1, size))
    minimum = parts.amin(-1).to(stored)
    scale = ((parts.amax(-1) - minimum.float()) / levels).to(stored)
    scale = scale.masked_fill(scale <= 0, 1.0)
    exact = (parts - minimum.float().unsqueeze(-1)) / scale.float().unsqueeze(-1)
    codes = _round(exact, generator).clamp_(0, levels).to(torch.uint8)
    return Partitioned(codes, scale, minimum, codes.sum(-1, dtype=torch.int16))


def _round(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """To the nearest, or up with a probability equal to the fraction."""
    if generator is None:
        return x.round()
    return (x + torch.rand(x.shape, generator=generator, device=x.device)).floor_()


def multiply(a: Partitioned, b: Partitioned) -> Tensor:
    """The product of a [..., rows, n] and the transpose of b [..., columns, n], on their codes: float32 [..., rows, columns].

    The dot products of codes stay below 2**24 (255 * 255 * 64), so float32 computes them exactly. The partitions of the
    codes' product are in memory at once: [..., partitions, rows, columns].
    """
    dots = a.codes.float().transpose(-3, -2) @ b.codes.float().transpose(-3, -2).mT  # [..., partitions, rows, columns]
    a_scale, a_min, b_scale, b_min = (x.float() for x in (a.scale, a.minimum, b.scale, b.minimum))
    products = (dots * a_scale.mT.unsqueeze(-1) * b_scale.mT.unsqueeze(-2)).sum(-3)
    a_totals = a_scale * a.sums.float() + a.codes.shape[-1] * a_min  # what each partition of A adds up to
    return products + a_totals @ b_min.mT + a_min @ (b_scale * b.sums.float()).mT
