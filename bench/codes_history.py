"""Attention for teacher-forced evaluation: every token attends the codes of all pages closed before it, exactly as in decoding.

Texts are processed in steps. The first step takes a text's first sink_tokens + page_tokens tokens, each later one the next
page_tokens. A step's queries attend [pages closed so far, on codes] and, exactly, [the sinks and the step's own tokens, causal];
after it the step's block becomes a page. Decoding attends the same: a block's codes are seen after the token that filled it has attended.
This file knows nothing of models, tokens or scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hack_kernels.close_pages import close_pages
from hack_kernels.page_format import PageFormat
from hack_kernels.prefill_attention import prefill_attention


@dataclass(frozen=True)
class Span:
    """Tokens start..stop of one text (an index into the group)."""

    text: int
    start: int
    stop: int

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start


def num_steps(fmt: PageFormat, num_tokens: int) -> int:
    """Steps that a text of `num_tokens` takes."""
    return max(1, -(-(num_tokens - fmt.sink_tokens) // fmt.page_tokens))


def step_spans(fmt: PageFormat, lengths: Sequence[int], step: int) -> list[Span]:
    """The spans of step `step`, in the order of the texts; texts that have ended are left out."""
    start = 0 if step == 0 else fmt.sink_tokens + step * fmt.page_tokens
    stop = fmt.sink_tokens + (step + 1) * fmt.page_tokens
    return [Span(text, start, min(stop, length)) for text, length in enumerate(lengths) if start < length]


class CodesHistory:
    """An `Attend` over a group of texts, with one page pool per layer. Call `begin` before each forward.

    Texts of lengths[i] tokens own ceil(longest / page_tokens) slots of each pool; the sinks are kept in `fmt.dtype` beside it.
    """

    def __init__(
        self, fmt: PageFormat, layers: int, kv_heads: int, lengths: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        self.fmt = fmt
        self._slots_per_text = max(1, max(map(fmt.num_pages, lengths)))
        num_slots = len(lengths) * self._slots_per_text
        self._pools = torch.zeros(layers, num_slots, kv_heads, fmt.page_bytes, dtype=torch.uint8, device=device)
        self._sinks = torch.zeros(
            layers, len(lengths), 2, kv_heads, fmt.sink_tokens, fmt.head_dim, dtype=fmt.dtype, device=device
        )
        self._spans: list[Span] = []

    def begin(self, spans: Sequence[Span]) -> None:
        """The next forward's rows are these spans, one after the other, as `step_spans` makes them."""
        self._spans = list(spans)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q [T, heads, head_dim], k, v [T, kv_heads, head_dim] of all spans -> [T, heads, head_dim]; closes the spans' pages."""
        sizes = [span.num_tokens for span in self._spans]
        blocks = [
            (keys.transpose(0, 1), values.transpose(0, 1))
            for keys, values in zip(torch.split(k, sizes), torch.split(v, sizes), strict=True)
        ]
        out = [
            self._attend(layer, span, queries, own_k, own_v, scale)
            for span, queries, (own_k, own_v) in zip(self._spans, torch.split(q, sizes), blocks, strict=True)
        ]
        self._close(layer, blocks)
        return torch.cat(out)

    def _attend(self, layer: int, span: Span, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if span.start == 0:
            sinks = slice(0, min(self.fmt.sink_tokens, span.num_tokens))
            self._sinks[layer, span.text, 0, :, sinks] = k[:, sinks]
            self._sinks[layer, span.text, 1, :, sinks] = v[:, sinks]
            return prefill_attention(self.fmt, q, k, v, scale)
        sink_k, sink_v = self._sinks[layer, span.text]
        slots = self._slots(span.text, self.fmt.num_pages(span.start))
        keys, values = torch.cat([sink_k, k], dim=1), torch.cat([sink_v, v], dim=1)
        return prefill_attention(self.fmt, q, keys, values, scale, self._pools[layer], slots)

    def _slots(self, text: int, num_pages: int) -> Tensor:
        first = text * self._slots_per_text
        return torch.arange(first, first + num_pages, device=self._pools.device)

    def _close(self, layer: int, blocks: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Makes a page of each span that ends a block, all in one call."""
        full = [
            i for i, span in enumerate(self._spans) if self.fmt.num_pages(span.stop) > self.fmt.num_pages(span.start)
        ]
        if not full:
            return
        k, v = (torch.stack([blocks[i][side][:, -self.fmt.page_tokens :] for i in full]) for side in (0, 1))
        slots = [self._slots(span.text, self.fmt.num_pages(span.stop))[-1] for span in (self._spans[i] for i in full)]
        self._pools[layer, torch.stack(slots)] = close_pages(self.fmt, k, v)
