"""What `bench kernels` attends to: seeded K and V in a pool of closed pages with shuffled page tables. Measures nothing.

K has channels with large offsets and gains, as models' keys have. Every baseline attends the very values that the pages stand
for (`dense`), contiguous and in its own dtype: that is its best case, and the error of each is then that of its own arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import hack_kernels
from hack_kernels.page_format import PageFormat

DTYPE = torch.bfloat16
SPARE_SLOTS = 1.25  # the pool has a quarter more slots than pages, so that tables do not list it whole
PAGES_AT_ONCE = 256
OUTLIERS = 1 / 16  # share of K's channels
OUTLIER_GAIN, OUTLIER_OFFSET = 4.0, 6.0


@dataclass(frozen=True)
class Case:
    """One line of the comparison. `context` counts, for decode, all tokens attended, the newest included; for close_pages, those
    of the sequence whose whole pages are closed; for prefill, those before a chunk of `chunk` tokens."""

    op: str
    format: str
    context: int
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    chunk: int = 512

    @cached_property
    def fmt(self) -> PageFormat:
        return PageFormat.parse(self.format, self.head_dim, DTYPE)

    @property
    def history_tokens(self) -> int:
        """Tokens of each sequence before the step that is timed."""
        return self.context - 1 if self.op == "decode" else self.context

    @property
    def pages_per_sequence(self) -> int:
        return self.fmt.num_pages(self.history_tokens)

    @property
    def residual_tokens(self) -> int:
        """Exact tokens attended: of the residual, and the new one (decode) or the chunk (prefill)."""
        return self.fmt.residual_tokens(self.history_tokens) + (1 if self.op == "decode" else self.chunk)

    @property
    def tokens(self) -> int:
        """All tokens that the last query attends to."""
        return self.pages_per_sequence * self.fmt.page_tokens + self.residual_tokens

    @property
    def num_slots(self) -> int:
        return int(self.batch * self.pages_per_sequence * SPARE_SLOTS) + 1


@dataclass(frozen=True)
class Inputs:
    """One layer's tensors. `q` is [batch, heads, head_dim] (decode) or [chunk, heads, head_dim] (prefill)."""

    case: Case
    q: Tensor
    pages: Tensor  # uint8 [num_slots, kv_heads, page_bytes]
    page_table: Tensor  # int64 [batch, pages_per_sequence]
    residual: Tensor  # [batch, 2 (K, V), kv_heads, slots, head_dim]

    @property
    def scale(self) -> float:
        return float(self.case.head_dim**-0.5)

    def exact(self) -> tuple[Tensor, Tensor]:
        """K and V of the tokens that lie in no page, [batch, kv_heads, residual_tokens, head_dim] each."""
        k, v = self.residual[:, :, :, : self.case.residual_tokens].unbind(1)
        return k, v

    def dense(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """K and V of all tokens, dequantized and contiguous: [batch, kv_heads, tokens, head_dim] each."""
        case = self.case
        shape = (case.batch, case.kv_heads, case.tokens, case.head_dim)
        both = tuple(torch.empty(shape, dtype=dtype, device=self.q.device) for _ in range(2))
        for sequence in range(case.batch):
            for first in range(0, case.pages_per_sequence, PAGES_AT_ONCE):
                slots = self.page_table[sequence, first : first + PAGES_AT_ONCE]
                opened = hack_kernels.open_pages(case.fmt, self.pages.index_select(0, slots))
                start = first * case.fmt.page_tokens
                for whole, part in zip(both, opened, strict=True):
                    tokens = part.transpose(0, 1).flatten(1, 2)  # [kv_heads, tokens, head_dim]
                    whole[sequence, :, start : start + tokens.shape[1]] = tokens
        for whole, part in zip(both, self.exact(), strict=True):
            whole[:, :, case.tokens - case.residual_tokens :] = part
        return both[0], both[1]


class Values:
    """Seeded K and V: normal, with a few channels of K that are large and off centre."""

    def __init__(self, case: Case, device: str, seed: int) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device = device
        shape = (case.kv_heads, 1, case.head_dim)
        large = torch.rand(shape, generator=self._generator, device=device) < OUTLIERS
        self._gain = torch.where(large, OUTLIER_GAIN, 1.0)
        self._offset = torch.where(large, OUTLIER_OFFSET * self.normal(*shape).sign(), 0.0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self._device)

    def kv(self, num: int, kv_heads: int, tokens: int, head_dim: int) -> tuple[Tensor, Tensor]:
        """K and V [num, kv_heads, tokens, head_dim] in DTYPE."""
        k = self.normal(num, kv_heads, tokens, head_dim).mul_(self._gain).add_(self._offset)
        return k.to(DTYPE), self.normal(num, kv_heads, tokens, head_dim).to(DTYPE)

    def permutation(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self._generator, device=self._device)


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """The tensors of an attention case; the pages are closed by the chosen back end, in slices."""
    values = Values(case, device, seed)
    pages = torch.zeros(case.num_slots, case.kv_heads, case.fmt.page_bytes, dtype=torch.uint8, device=device)
    used = values.permutation(case.num_slots)[: case.batch * case.pages_per_sequence]
    for some in torch.split(used, PAGES_AT_ONCE):
        k, v = values.kv(some.shape[0], case.kv_heads, case.fmt.page_tokens, case.head_dim)
        pages.index_copy_(0, some, hack_kernels.close_pages(case.fmt, k, v))
    slots = max(case.fmt.residual_slots, case.residual_tokens)
    residual = torch.stack(values.kv(case.batch, case.kv_heads, slots, case.head_dim), dim=1)
    rows = case.batch if case.op == "decode" else case.chunk
    q = values.normal(rows, case.heads, case.head_dim).to(DTYPE)
    return Inputs(case, q, pages, used.view(case.batch, -1), residual)


def make_blocks(case: Case, device: str, seed: int) -> tuple[Tensor, Tensor]:
    """K and V of all whole pages of the batch, [num_pages, kv_heads, page_tokens, head_dim], to be closed."""
    values = Values(case, device, seed)
    num = case.batch * case.pages_per_sequence
    parts = [
        values.kv(min(PAGES_AT_ONCE, num - first), case.kv_heads, case.fmt.page_tokens, case.head_dim)
        for first in range(0, num, PAGES_AT_ONCE)
    ]
    k, v = (torch.cat(column) for column in zip(*parts, strict=True))
    return k, v


def make_cases(
    ops: tuple[str, ...], formats: tuple[str, ...], contexts: tuple[int, ...], batches: tuple[int, ...], **shape: int
) -> Iterator[Case]:
    """All combinations, formats innermost last: contexts of one format lie together."""
    for op in ops:
        for fmt in formats:
            for batch in batches:
                for context in contexts:
                    yield Case(op, fmt, context, batch, **shape)
