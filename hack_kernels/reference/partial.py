"""Partial attention: over some of a query's keys, to be merged with the rest by log-sum-exp. Knows nothing of pages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Partial:
    """Attention of `rows` queries over some keys, all float32. With w = exp(score - top), over those keys:"""

    top: Tensor  # [..., rows]             the largest score
    total: Tensor  # [..., rows]           sum of w
    out: Tensor  # [..., rows, head_dim]   sum of w * v

    def merge(self, parts: Partial, owner: Tensor) -> Partial:
        """This partial [batch, ...] with `parts` [n, ...] added, parts[i] to entry owner[i] (int64 [n]) of the batch."""
        top = self.top.scatter_reduce(0, owner.view(-1, 1, 1).expand_as(parts.top), parts.top, "amax")
        keep = torch.exp(self.top - top)
        share = torch.exp(parts.top - top.index_select(0, owner))
        total = (self.total * keep).index_add_(0, owner, parts.total * share)
        out = (self.out * keep.unsqueeze(-1)).index_add_(0, owner, parts.out * share.unsqueeze(-1))
        return Partial(top, total, out)

    def result(self) -> Tensor:
        """The attention's output [..., rows, head_dim]."""
        return self.out / self.total.unsqueeze(-1)


def attend_exact(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Partial:
    """Exact attention in float32: q [..., rows, head_dim] (times the softmax scale), k and v [..., keys, head_dim].

    `seen`, bool and broadcast to [..., rows, keys], says which keys a row attends to, at least one; v must be finite at all.
    """
    scores = q @ k.mT
    if seen is not None:
        scores = scores.masked_fill_(~seen, -torch.inf)
    top = scores.amax(-1)
    weights = scores.sub_(top.unsqueeze(-1)).exp_()
    return Partial(top, weights.sum(-1), weights @ v)
