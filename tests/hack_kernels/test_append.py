"""A sequence that grows by a token at a time: which slot, when a block closes, and that it closes once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hack_kernels import PageFormat, append, close_pages
from tests.hack_kernels.sequences import random_kv, split

pytestmark = pytest.mark.usefixtures("kernels")

TOKENS = 140  # sinks, two blocks, and four tokens of a third


class Grown:
    """Three sequences, started apart, appended to in one batch; slots and rows are not in order."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32) -> None:
        self.fmt = PageFormat.parse(name, 64, dtype)
        self.kv = torch.stack(
            [random_kv(2, TOKENS, 64, seed, dtype) for seed in range(3)]
        )  # [3, 2, kv_heads, tokens, dim]
        self.pages = torch.full((10, 2, self.fmt.page_bytes), 0xFF, dtype=torch.uint8)
        self.residual = torch.full((5, 2, 2, self.fmt.residual_slots, 64), torch.nan, dtype=dtype)
        self.rows = torch.tensor([4, 0, 2])
        self.slots = torch.tensor([[7, 1, 9], [3, 2, 0], [5, 8, 6]])
        self.num_tokens = torch.zeros(3, dtype=torch.int64)

    def step(self, active: Tensor) -> None:
        """Appends the next token to the sequences `active`."""
        counts, rows = self.num_tokens[active], self.rows[active]
        k, v = self.kv[active, :, :, counts].unbind(1)
        pages_before = torch.tensor([self.fmt.num_pages(n) for n in counts.tolist()])
        slots = self.slots[active, pages_before]
        append(self.fmt, k, v, self.pages, self.residual, rows, counts, slots)
        self.num_tokens[active] += 1

    def expected(self, i: int) -> tuple[Tensor, Tensor]:
        """Pages and residual of sequence i, made from all its tokens at once."""
        count = int(self.num_tokens[i])
        blocks, rest = split(self.fmt, self.kv[i, :, :, :count], self.fmt.num_pages(count))
        return close_pages(self.fmt, blocks[0], blocks[1]), rest


@pytest.mark.parametrize("name", ["raw", "k4v2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_growing_token_by_token_equals_storing_at_once(name: str, dtype: torch.dtype) -> None:
    grown = Grown(name, dtype)
    for step in range(TOKENS):
        active = torch.tensor([0, 2] if step < 10 else [2, 0, 1] if step < 130 else [1])
        grown.step(active)
    assert grown.num_tokens.tolist() == [130, 130, 130]
    used = []
    for i in range(3):
        pages, rest = grown.expected(i)
        used += grown.slots[i, : pages.shape[0]].tolist()
        assert torch.equal(grown.pages[grown.slots[i, : pages.shape[0]]], pages)
        assert torch.equal(grown.residual[grown.rows[i], :, :, : rest.shape[2]], rest)
    unused = [slot for slot in range(10) if slot not in used]
    assert (grown.pages[unused] == 0xFF).all()
    assert grown.residual[[1, 3]].isnan().all()


def test_a_block_closes_at_its_last_token_and_never_again() -> None:
    grown = Grown("k2v2")
    closed_at = {}
    for count in range(1, TOKENS + 1):
        before = grown.pages.clone()
        grown.step(torch.tensor([1]))
        changed = (grown.pages != before).flatten(1).any(1).nonzero().flatten().tolist()
        if changed:
            closed_at[count] = changed
    assert closed_at == {68: [3], 132: [2]}


def test_only_full_blocks_are_closed() -> None:
    grown = Grown("k2v2")
    grown.residual.normal_(generator=torch.Generator().manual_seed(0))
    slots = torch.tensor([-1, 3, -1])  # the slot is not read where nothing closes
    k, v = torch.randn(2, 3, 2, 64, generator=torch.Generator().manual_seed(1))
    append(grown.fmt, k, v, grown.pages, grown.residual, grown.rows, torch.tensor([3, 67, 66]), slots)
    others = [slot for slot in range(10) if slot != 3]
    assert (grown.pages[others] == 0xFF).all()
    block = grown.residual[0][None, :, :, 4:]
    assert torch.equal(block[0, :, :, -1], torch.stack((k[1], v[1])))
    assert torch.equal(grown.pages[3], close_pages(grown.fmt, block[:, 0], block[:, 1])[0])


@pytest.mark.parametrize(("position", "slot"), [(0, 0), (3, 3), (4, 4), (67, 67), (68, 4), (131, 67), (132, 4)])
def test_the_slot_of_a_token(position: int, slot: int) -> None:
    grown = Grown("raw")
    k, v = torch.ones(1, 2, 64), torch.full((1, 2, 64), 2.0)
    index = torch.tensor([position])
    append(grown.fmt, k, v, grown.pages, grown.residual, torch.tensor([3]), index, torch.zeros_like(index))
    assert (grown.residual[3, 0, :, slot] == 1).all()
    assert (grown.residual[3, 1, :, slot] == 2).all()
    assert int(grown.residual.isnan().sum()) == grown.residual.numel() - 2 * 2 * 64
