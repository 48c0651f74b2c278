"""Quantization: the error stays within what bits and range imply, and the bytes depend on the values alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hack_kernels import PageFormat, close_pages, open_pages, unpack_codes
from hack_kernels.page_format import BITS
from tests.hack_kernels.sequences import random_kv

CODED = [f"k{k_bits}v{v_bits}" for k_bits in BITS for v_bits in BITS]


def blocks(num_pages: int, kv_heads: int, head_dim: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    kv = random_kv(kv_heads, num_pages * 64, head_dim, seed)
    k, v = torch.unflatten(kv, 2, (num_pages, 64)).transpose(1, 2)
    return k, v


def error_limit(x: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """How far a value may be from itself after a round trip, for each group of x along `dim`.

    No value is clipped (see close_pages), so rounding a code costs at most scale / 2. The scale is at most
    (max - min') / (2**bits - 1) rounded up to bf16's 8 significant bits, a factor below 1 + 2**-7, and min' is the minimum rounded
    down by less than |min| * 2**-7. The last term is float32's rounding in (x - min') / scale and in scale * code + min'.
    """
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    scale = (high - low + low.abs() * 2**-7) / (2**bits - 1) * (1 + 2**-7)
    return scale / 2 + 1e-6 * (low.abs() + high.abs())


def check_round_trip(fmt: PageFormat, k: torch.Tensor, v: torch.Tensor) -> None:
    opened_k, opened_v = open_pages(fmt, close_pages(fmt, k, v))
    assert ((opened_k - k).abs() <= error_limit(k, fmt.k_bits or 0, -2)).all()
    groups = torch.unflatten(v, -1, (fmt.v_groups, -1))
    errors = torch.unflatten(opened_v - v, -1, (fmt.v_groups, -1)).abs()
    assert (errors <= error_limit(groups, fmt.v_bits or 0, -1)).all()


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("head_dim", [16, 80, 128])
def test_round_trip_error(name: str, head_dim: int) -> None:
    check_round_trip(PageFormat.parse(name, head_dim, torch.float32), *blocks(3, 2, head_dim))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.sampled_from(CODED),
    st.floats(-1e4, 1e4),
    st.floats(1e-4, 1e4),
    st.integers(0, 1000),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_round_trip_of_any_offset_and_spread(
    name: str, offset: float, spread: float, seed: int, dtype: torch.dtype
) -> None:
    k, v = blocks(1, 1, 16, seed)
    k, v = (((x * spread / 8) + offset).to(dtype).float() for x in (k, v))
    check_round_trip(PageFormat.parse(name, 16, dtype), k, v)


def test_every_level_is_used_and_no_more() -> None:
    fmt = PageFormat.parse("k2v2", 64, torch.float32)
    codes = unpack_codes(fmt.view(close_pages(fmt, *blocks(4, 2, 64)), "k_codes"), 2)
    assert (codes.amin(-2) == 0).all()
    assert (codes.amax(-2) == 3).all()


@pytest.mark.parametrize("name", CODED)
def test_values_on_the_grid_are_exact(name: str) -> None:
    fmt = PageFormat.parse(name, 64, torch.float32)
    k = torch.randint(0, 2 ** (fmt.k_bits or 0), (2, 1, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    v = torch.randint(0, 2 ** (fmt.v_bits or 0), (2, 1, 64, 64), generator=torch.Generator().manual_seed(1)).float()
    k[..., :2, :] = torch.tensor([0.0, 2.0 ** (fmt.k_bits or 0) - 1]).view(2, 1)
    v[..., :2] = torch.tensor([0.0, 2.0 ** (fmt.v_bits or 0) - 1])
    k, v = k * 0.25 - 3, v * 0.5 + 1
    opened = open_pages(fmt, close_pages(fmt, k, v))
    assert torch.equal(opened[0], k)
    assert torch.equal(opened[1], v)


def test_a_constant_group_is_exact_with_scale_1() -> None:
    fmt = PageFormat.parse("k2v4", 64, torch.bfloat16)
    constant = torch.full((1, 2, 64, 64), 0.1, dtype=torch.bfloat16)
    pages = close_pages(fmt, constant, -constant)
    for name in ("k_scale", "v_scale"):
        assert (fmt.view(pages, name) == 1).all()
    for name in ("k_codes", "v_codes"):
        assert (fmt.view(pages, name) == 0).all()
    k, v = open_pages(fmt, pages)
    assert torch.equal(k, constant.float())
    assert torch.equal(v, -constant.float())


def test_raw_pages_hold_the_bytes() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        fmt = PageFormat.parse("raw", 64, dtype)
        k, v = (x.to(dtype) for x in blocks(2, 3, 64))
        pages = close_pages(fmt, k, v)
        assert pages.shape == (2, 3, 2 * 64 * 64 * dtype.itemsize)
        assert torch.equal(fmt.view(pages, "k"), k)
        assert torch.equal(fmt.view(pages, "v"), v)


@pytest.mark.parametrize("name", ["raw", "k2v2", "k8v4"])
def test_bytes_depend_on_the_values_alone(name: str) -> None:
    fmt = PageFormat.parse(name, 80, torch.bfloat16)
    k, v = (x.bfloat16() for x in blocks(5, 2, 80))
    together = close_pages(fmt, k, v)
    out = torch.full_like(together, 0xAB)
    assert close_pages(fmt, k, v, out) is out
    assert torch.equal(out, together)
    for i in range(5):  # alone, in another memory layout, in another dtype
        strided = k[i : i + 1].transpose(1, 2).contiguous().transpose(1, 2)
        assert torch.equal(close_pages(fmt, strided, v[i : i + 1].float())[0], together[i])


def test_the_sign_of_zero_does_not_reach_the_bytes() -> None:
    fmt = PageFormat.parse("k4v4", 16, torch.float32)
    k, v = (x.abs() for x in blocks(1, 1, 16))
    k[..., 7, :], v[..., 3] = 0.0, 0.0
    negative_k, negative_v = k.clone(), v.clone()
    negative_k[..., 7, :], negative_v[..., 3] = -0.0, -0.0
    assert torch.equal(close_pages(fmt, k, v), close_pages(fmt, negative_k, negative_v))


def test_padding_is_zero() -> None:
    fmt = PageFormat(8, torch.float32, 2, 2, page_tokens=4)  # 8 bytes of codes and of scales, each padded to 16
    k, v = torch.unflatten(random_kv(1, 8, 8), 2, (2, 4)).transpose(1, 2)
    out = close_pages(fmt, k, v, torch.full((2, 1, fmt.page_bytes), 0xAB, dtype=torch.uint8))
    used = torch.zeros(fmt.page_bytes, dtype=torch.bool)
    for field in fmt.fields.values():
        used[field.offset : field.offset + field.num_bytes] = True
    assert not used.all()
    assert (out[..., ~used] == 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_poison_their_group_alone(bad: float) -> None:
    fmt = PageFormat.parse("k4v4", 128, torch.float32)
    k, v = blocks(1, 1, 128)
    good = open_pages(fmt, close_pages(fmt, k, v))
    k[0, 0, 10, 20], v[0, 0, 30, 70] = bad, bad
    opened_k, opened_v = open_pages(fmt, close_pages(fmt, k, v))
    assert not opened_k[..., 20].isfinite().any()
    assert not opened_v[0, 0, 30, 64:].isfinite().any()
    opened_k[..., 20], opened_v[0, 0, 30, 64:] = good[0][..., 20], good[1][0, 0, 30, 64:]
    assert torch.equal(opened_k, good[0])
    assert torch.equal(opened_v, good[1])
