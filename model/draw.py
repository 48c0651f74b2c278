"""Draws one token per row within top-k, top-p and min-p: inverse CDF in float64, from the most probable token down.

Sorting a vocabulary of 150,000 takes 27 ms a row on one CPU core (torch 2.13), so the `HEAD` most probable tokens are tried
first; a row whose limits or whose draw reach beyond them is sorted whole. Either way, and in any batch, the row draws the
same token: tokens of equal probability rank by id, and only those certain to be in the head are taken from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from transport.messages import Sampling

HEAD = 1024
_UNKNOWN = -1


def draw(logits: Tensor, settings: Sequence[Sampling], numbers: Sequence[float]) -> list[int]:
    """logits float32 [N, vocab], after bias and penalties; for each row a temperature above 0 and a number in [0, 1)."""
    vocab = logits.shape[1]
    tokens = [_UNKNOWN] * len(settings)
    rows = list(range(len(settings)))
    for size in (HEAD, vocab) if vocab > 4 * HEAD else (vocab,):
        if rows:
            part = logits if len(rows) == len(settings) else logits[rows]
            drawn = _draw_from(part, size, [settings[i] for i in rows], [numbers[i] for i in rows])
            for i, token in zip(rows, drawn, strict=True):
                tokens[i] = token
        rows = [i for i in rows if tokens[i] == _UNKNOWN]
    return tokens


def _draw_from(logits: Tensor, size: int, settings: Sequence[Sampling], numbers: Sequence[float]) -> list[int]:
    """A token per row, or _UNKNOWN where the `size` most probable tokens do not decide it."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    vocab = logits.shape[1]
    ids, certain = _ranked(logits, size)
    scaled = (logits.double() - logits.amax(dim=-1, keepdim=True)) / column([s.temperature for s in settings])
    probs = scaled.softmax(dim=-1).gather(1, ids)  # [N, size], of all tokens' probability
    cdf = probs.cumsum(dim=-1)
    # Each limit keeps the tokens down to some rank, so all three together keep those down to the lowest of their ranks.
    top_k = column([min(s.top_k or vocab, vocab) for s in settings]).long()
    top_p, min_p = column([s.top_p for s in settings]), column([s.min_p for s in settings])
    mass = torch.where(top_k < vocab, cdf.gather(1, top_k.clamp(max=size) - 1), 1.0)
    within = ((cdf - probs < top_p * mass) | (top_p >= 1)) & (probs >= min_p * probs[:, :1])
    limited = (top_k < vocab) | (top_p < 1) | (min_p > 0)
    num_kept = torch.minimum(top_k, within.sum(dim=-1, keepdim=True)).clamp(min=1)
    kept_mass = torch.where(limited, cdf.gather(1, num_kept - 1), 1.0)
    rank = torch.searchsorted(cdf, column(numbers) * kept_mass, right=True)
    rank = torch.where(limited, rank.minimum(num_kept - 1), rank)
    decided = torch.where(limited, (num_kept < certain) & ((top_k <= certain) | (top_k == vocab)), rank < certain)
    known = decided | (certain == vocab)
    last = (probs > 0).sum(dim=-1, keepdim=True) - 1  # rounding may leave the whole CDF below the draw
    token = ids.gather(1, rank.minimum(last))
    out: list[int] = torch.where(known, token, _UNKNOWN)[:, 0].tolist()
    return out


def _ranked(logits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The `size` largest of each row by falling value, then rising id: ids [N, size], and how many are certain [N, 1].

    Of the tokens that equal the last one, any may have been left out, so none of them is certain, unless the row is whole.
    """
    if size == logits.shape[1]:
        ids = logits.sort(dim=-1, descending=True, stable=True).indices
        return ids, torch.full_like(ids[:, :1], size)
    found = logits.topk(size).indices.sort(dim=-1).values
    values, order = logits.gather(1, found).sort(dim=-1, descending=True, stable=True)
    return found.gather(1, order), (values > values[:, -1:]).sum(dim=-1, keepdim=True)
