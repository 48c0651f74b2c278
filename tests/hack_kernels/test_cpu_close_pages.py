"""Pages closed natively are the reference's to the byte, on every instruction set, for any values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hack_kernels import PageFormat, close_pages
from hack_kernels.cpu.append import append
from hack_kernels.page_format import BITS
from hack_kernels.reference import append as reference_append
from hack_kernels.reference import close_pages as reference
from tests.hack_kernels.sequences import random_kv

CODED = [f"k{k_bits}v{v_bits}" for k_bits in BITS for v_bits in BITS]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HEAD_DIMS = [16, 48, 64, 80, 96, 128, 192, 256]


def check(fmt: PageFormat, k: Tensor, v: Tensor) -> None:
    expected = reference.close_pages(fmt, k, v)
    out = torch.full_like(expected, 0xAB)  # every byte is written
    close_pages(fmt, k, v, out)
    for name in fmt.fields:
        same = fmt.view(out, name).view(torch.uint8) == fmt.view(expected, name).view(torch.uint8)
        assert same.all(), f"{name}: {(~same).nonzero()[:4].tolist()}"
    assert torch.equal(out, expected)


def blocks(num_pages: int, kv_heads: int, head_dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    kv = random_kv(kv_heads, num_pages * 64, head_dim, seed)
    k, v = torch.unflatten(kv, 2, (num_pages, 64)).transpose(1, 2)
    return k, v


@pytest.mark.parametrize("name", ["raw", *CODED])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_pages_are_the_references(isa: str, name: str, head_dim: int) -> None:
    k, v = blocks(2, 3, head_dim)  # strided: heads before pages
    check(PageFormat.parse(name, head_dim, torch.float32), k, v)


@pytest.mark.parametrize("name", ["raw", "k4v2"])
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("given_as", ["stored", "float32", "mixed"])
def test_dtypes(isa: str, name: str, stored: torch.dtype, given_as: str) -> None:
    k, v = (x.to(stored) for x in blocks(2, 2, 80))
    if given_as != "stored":
        k = k.float()
    if given_as == "float32":
        v = v.float()
    check(PageFormat.parse(name, 80, stored), k, v)


SPECIAL = [
    0.0,
    -0.0,
    torch.nan,
    -torch.nan,
    torch.inf,
    -torch.inf,
    3.4e38,
    -3.4e38,
    1e-38,
    1e-45,
    -1e-42,
    2.0**-20,
    3840.0,
]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(CODED),
    head_dim=st.sampled_from([16, 40, 64, 80, 128]),
    seed=st.integers(0, 1000),
    offset=st.floats(-1e5, 1e5),
    exponent=st.integers(-140, 125),
    special=st.lists(st.sampled_from(SPECIAL), max_size=6),
    constant=st.booleans(),
)
def test_any_values(
    isa: str, name: str, head_dim: int, seed: int, offset: float, exponent: int, special: list[float], constant: bool
) -> None:
    if head_dim % 16 and name.startswith("k2"):
        head_dim = 48
    generator = torch.Generator().manual_seed(seed)
    kv = torch.randn(2, 1, 1, 64, head_dim, generator=generator) * 2.0**exponent + offset
    if constant:
        kv[..., :7] = kv[..., :1, :7]
        kv[..., 9, :] = kv[..., 9, :1]
    places = torch.randint(kv.numel(), (len(special),), generator=generator)
    kv.view(-1)[places] = torch.tensor(special)
    check(PageFormat.parse(name, head_dim, torch.float32), kv[0], kv[1])


@pytest.mark.parametrize("bits", BITS)
def test_ties_and_clips(isa: str, bits: int) -> None:
    """Values exactly between two codes, and beyond the grid's ends."""
    fmt = PageFormat(64, torch.float32, bits, bits)
    steps = torch.arange(64 * 64).view(1, 1, 64, 64) % (2 ** (bits + 1) + 3)
    check(fmt, steps * 0.5 - 3, steps.mT * 0.25 + 1)
    check(fmt, steps * 0.125 * 1.0001, -steps.mT * 0.0625)


def test_the_last_dimension_of_what_is_written_must_be_contiguous(isa: str) -> None:
    fmt = PageFormat.parse("k4v4", 64, torch.float32)
    k, v = blocks(1, 1, 64)
    out = torch.zeros(1, 1, fmt.page_bytes, 2, dtype=torch.uint8)[..., 0]
    with pytest.raises(ValueError, match=r"^out must be contiguous"):
        close_pages(fmt, k, v, out)


def test_inputs_of_any_strides_and_alignment(isa: str) -> None:
    fmt = PageFormat.parse("k2v4", 80, torch.bfloat16)
    k, v = (x.bfloat16() for x in blocks(2, 2, 80))
    expected = reference.close_pages(fmt, k, v)
    spread = [torch.stack((x, x), -1)[..., 0] for x in (k, v)]
    assert torch.equal(close_pages(fmt, *spread), expected)
    buffer = torch.zeros(expected.numel() + 3, dtype=torch.uint8)
    odd = buffer[3:].view(expected.shape)
    assert torch.equal(close_pages(fmt, k, v, odd), expected)


@pytest.mark.parametrize("name", ["raw", "k2v2"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given_as", DTYPES)
def test_append_closes_the_blocks_that_it_fills(isa: str, name: str, dtype: torch.dtype, given_as: torch.dtype) -> None:
    fmt = PageFormat.parse(name, 48, dtype)
    generator = torch.Generator().manual_seed(0)
    residual = torch.randn(6, 2, 3, fmt.residual_slots, 48, generator=generator).to(dtype)
    k, v = torch.randn(2, 4, 3, 48, generator=generator).to(given_as) * 1e-4
    rows, counts, slots = torch.tensor([5, 0, 3, 1]), torch.tensor([2, 67, 68, 131]), torch.tensor([-1, 4, 0, 2])
    outcomes = []
    for module in (append, reference_append.append):
        pages, own = torch.full((7, 3, fmt.page_bytes), 0xCD, dtype=torch.uint8), residual.clone()
        module(fmt, k, v, pages, own, rows, counts, slots)
        outcomes.append((pages, own))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert torch.equal(outcomes[0][1], outcomes[1][1])
    changed = (outcomes[0][0] != 0xCD).flatten(1).any(1).nonzero().flatten().tolist()
    assert changed == [2, 4]
