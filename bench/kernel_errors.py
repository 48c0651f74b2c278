"""What attention to a case's pages ought to give, in float64, for a few heads. Shares no code with what it checks but `open_pages`."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

import hack_kernels
from bench.kernel_cases import Case, Inputs
from hack_kernels.page_format import PageFormat
from hack_kernels.reference.close_pages import close_pages

HEADS_CHECKED = 4
QUERIES_CHECKED = 16
TOKENS_AT_ONCE = 16384
PAGES_CHECKED = 16


@dataclass(frozen=True)
class Expected:
    """float64 outputs: `values[i]` [rows, head_dim] for sequence and query head `heads[i]`, of the queries `rows` (prefill)."""

    heads: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]
    values: tuple[Tensor, ...]

    def max_error(self, case: Case, out: Tensor) -> float:
        """The largest absolute difference of an output [batch, heads, head_dim] (decode), [chunk, heads, head_dim] or
        [batch, heads, chunk, head_dim]."""
        rows = out.unsqueeze(2) if case.op == "decode" else out.transpose(0, 1).unsqueeze(0) if out.dim() == 3 else out
        got = [rows[sequence, head, list(self.rows)].double() for sequence, head in self.heads]
        return max(float((a - b).abs().amax()) for a, b in zip(got, self.values, strict=True))


def expect(inputs: Inputs, seed: int) -> Expected:
    """Sampled by `seed`: HEADS_CHECKED pairs of a sequence and a query head; of a chunk QUERIES_CHECKED queries, its ends included."""
    case, chosen = inputs.case, random.Random(seed)
    pairs = [(sequence, head) for sequence in range(case.batch) for head in range(case.heads)]
    heads = tuple(chosen.sample(pairs, min(HEADS_CHECKED, len(pairs))))
    rows: tuple[int, ...] = (0,)
    if case.op == "prefill":
        rows = tuple(sorted({0, case.chunk - 1, *chosen.sample(range(case.chunk), min(QUERIES_CHECKED, case.chunk))}))
    return Expected(heads, rows, tuple(_attend(inputs, sequence, head, rows) for sequence, head in heads))


def _attend(inputs: Inputs, sequence: int, head: int, rows: tuple[int, ...]) -> Tensor:
    case = inputs.case
    kv_head = head * case.kv_heads // case.heads
    opened = hack_kernels.open_pages(case.fmt, inputs.pages[inputs.page_table[sequence], kv_head])
    exact = (x[sequence, kv_head].float() for x in inputs.exact())
    k, v = (torch.cat([x.flatten(0, 1), y]) for x, y in zip(opened, exact, strict=True))  # [tokens, head_dim]
    q = inputs.q[sequence, head].unsqueeze(0) if case.op == "decode" else inputs.q[list(rows), head]
    scores = torch.cat([q.double() @ part.double().T for part in torch.split(k, TOKENS_AT_ONCE)], dim=1).mul_(
        inputs.scale
    )
    if case.op == "prefill":
        last = torch.tensor([case.tokens - case.chunk + row for row in rows], device=q.device)
        scores.masked_fill_(torch.arange(case.tokens, device=q.device) > last.unsqueeze(1), -torch.inf)
    weights = torch.split(scores.softmax(-1), TOKENS_AT_ONCE, dim=1)
    return torch.stack(
        [w @ part.double() for w, part in zip(weights, torch.split(v, TOKENS_AT_ONCE), strict=True)]
    ).sum(0)


def closing_error(fmt: PageFormat, k: Tensor, v: Tensor, closed: Tensor) -> float:
    """The largest difference between what the first of the pages `closed` stand for and what they would if the specification
    had closed them: 0 where both have the same bytes."""
    k, v, closed = (x[:PAGES_CHECKED] for x in (k, v, closed))
    both = [hack_kernels.open_pages(fmt, pages) for pages in (closed, close_pages(fmt, k, v))]
    return max(float((a - b).abs().amax()) for a, b in zip(*both, strict=True))
