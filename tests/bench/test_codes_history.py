"""The evaluation attends as decoding does: the same sequence, block by block and token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.codes_history import CodesHistory, num_steps, step_spans
from hack_kernels.append import append
from hack_kernels.decode_attention import decode_attention
from hack_kernels.page_format import PageFormat

HEADS, KV_HEADS, DIM, TOKENS, SCALE = 4, 2, 16, 140, 0.25


def block_by_block(fmt: PageFormat, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    history = CodesHistory(fmt, 1, KV_HEADS, [TOKENS])
    out = []
    for step in range(num_steps(fmt, TOKENS)):
        spans = step_spans(fmt, [TOKENS], step)
        history.begin(spans)
        rows = slice(spans[0].start, spans[0].stop)
        out.append(history(0, q[rows], k[rows], v[rows], SCALE))
    return torch.cat(out)


def token_by_token(fmt: PageFormat, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    slots = torch.arange(fmt.num_pages(TOKENS))
    pages = torch.zeros(len(slots), KV_HEADS, fmt.page_bytes, dtype=torch.uint8)
    residual = torch.zeros(1, 2, KV_HEADS, fmt.residual_slots, DIM)
    row, out = torch.zeros(1, dtype=torch.int64), []
    for token in range(TOKENS):
        before = torch.tensor([token])
        closed = fmt.num_pages(token)
        next_slot = slots[closed : closed + 1] if closed < len(slots) else torch.zeros(1, dtype=torch.int64)
        append(fmt, k[token : token + 1], v[token : token + 1], pages, residual, row, before, next_slot)
        tokens_now = torch.tensor([token + 1 - closed * fmt.page_tokens])
        table = slots[None], torch.tensor([closed])
        out.append(decode_attention(fmt, q[token : token + 1], pages, *table, residual, row, tokens_now, SCALE))
    return torch.cat(out)


@pytest.mark.parametrize("name", ["raw", "k4v2"])
def test_blocks_attend_as_decoding_does(name: str) -> None:
    """The same arithmetic in another order: float32 noise, and now and then an int8 code rounded the other way.

    Such a code moves one score by at most a/2 * a code's largest value, which the weights then average away: 1e-3 of values near 1.
    """
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(TOKENS, HEADS, DIM, generator=generator)
    k, v = (torch.randn(TOKENS, KV_HEADS, DIM, generator=generator) for _ in range(2))
    fmt = PageFormat.parse(name, DIM, torch.float32)
    expected = token_by_token(fmt, q, k, v)
    atol = 1e-5 if name == "raw" else 1e-3
    torch.testing.assert_close(block_by_block(fmt, q, k, v), expected, atol=atol, rtol=0)


def test_history_is_on_codes() -> None:
    """Tokens with closed pages behind them see 2-bit values, tokens without see exact ones."""
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(TOKENS, HEADS, DIM, generator=generator)
    k, v = (torch.randn(TOKENS, KV_HEADS, DIM, generator=generator) for _ in range(2))
    raw = block_by_block(PageFormat.parse("raw", DIM, torch.float32), q, k, v)
    coded = block_by_block(PageFormat.parse("k2v2", DIM, torch.float32), q, k, v)
    torch.testing.assert_close(coded[:68], raw[:68], atol=1e-5, rtol=0)
    assert (coded[68:] - raw[68:]).abs().amax(dim=(1, 2)).min() > 1e-3
