"""Quantization: the error stays within what scale and clip imply, and the bytes depend on the values alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hack_kernels import PageFormat, close_pages, open_pages
from hack_kernels.page_format import BITS
from hack_kernels.reference import close_pages as reference
from hack_kernels.reference.close_pages import CLIP
from hack_kernels.reference.codes import unpack_k_codes, unpack_v_codes
from hack_kernels.reference.scales import decode_scale
from tests.hack_kernels.sequences import random_kv

pytestmark = pytest.mark.usefixtures("kernels")

CODED = [f"k{k_bits}v{v_bits}" for k_bits in BITS for v_bits in BITS]


def blocks(num_pages: int, kv_heads: int, head_dim: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    kv = random_kv(kv_heads, num_pages * 64, head_dim, seed)
    k, v = torch.unflatten(kv, 2, (num_pages, 64)).transpose(1, 2)
    return k, v


def error_limit(x: torch.Tensor, scale: torch.Tensor, bits: int, center_error: torch.Tensor) -> torch.Tensor:
    """How far a value may be from itself after a round trip, for each group of x along the last dimension.

    The grid of codes has half-width h = scale * levels / 2 and its centre at most `center_error` from the middle of the range. So
    a value inside is off by at most scale / 2, and one outside, which gets the grid's end, by its distance from it: at most
    range / 2 - h + center_error, the cut. The last term is float32's rounding in (x - min) / scale and in scale * code + min.
    """
    low, high = x.amin(-1), x.amax(-1)
    cut = (high - low) / 2 - scale * (2**bits - 1) / 2 + center_error
    return (torch.maximum(scale / 2, cut) + 1e-6 * (low.abs() + high.abs() + scale)).unsqueeze(-1)


def narrowest_scale(x: torch.Tensor, bits: int) -> torch.Tensor:
    """What a group's scale is at least: CLIP's share of the range, at most a seventeenth less by rounding to E5M3, at most 3840."""
    return ((x.amax(-1) - x.amin(-1)) * CLIP[bits] / (2**bits - 1) * (1 - 1 / 17)).clamp(max=3840) * (1 - 1e-6)


def check_round_trip(fmt: PageFormat, k: torch.Tensor, v: torch.Tensor) -> None:
    """K's centre is off by the rounding of k_min to bf16, 2**-8 of it; V's by half a step of v_zero, 2**(v_bits - 6) scales.

    v_zero must not have saturated for that: a scale's floor sees to it, until E5M3 itself ends.
    """
    assert fmt.k_bits is not None
    assert fmt.v_bits is not None
    pages = close_pages(fmt, k, v)
    opened_k, opened_v = open_pages(fmt, pages)

    k_scale, k_min = decode_scale(fmt.view(pages, "k_scale")), fmt.view(pages, "k_min").float()
    assert (k_scale >= narrowest_scale(k.mT, fmt.k_bits)).all()
    limit = error_limit(k.mT, k_scale, fmt.k_bits, k_min.abs() * 2**-8)
    assert ((opened_k - k).abs().mT <= limit).all()

    groups = torch.unflatten(v, -1, (fmt.v_groups, -1))
    errors = torch.unflatten(opened_v - v, -1, (fmt.v_groups, -1)).abs()
    v_scale = decode_scale(fmt.view(pages, "v_scale")).mT
    assert (v_scale >= narrowest_scale(groups, fmt.v_bits)).all()
    largest = groups.abs().amax(-1)
    saturated = v_scale == 3840
    assert (errors <= error_limit(groups, v_scale, fmt.v_bits, v_scale * 2.0 ** (fmt.v_bits - 6)))[~saturated].all()
    assert (errors <= 2 * largest.unsqueeze(-1))[saturated].all()


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("head_dim", [16, 80, 128])
def test_round_trip_error(name: str, head_dim: int) -> None:
    check_round_trip(PageFormat.parse(name, head_dim, torch.float32), *blocks(3, 2, head_dim))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    codes = unpack_k_codes(fmt.view(close_pages(fmt, *blocks(4, 2, 64)), "k_codes"), 2)
    assert (codes.amin(-2) == 0).all()
    assert (codes.amax(-2) == 3).all()


def test_a_page_by_hand() -> None:
    """One channel of K and one token of V with round numbers, through the formulas of close_pages."""
    fmt = PageFormat.parse("k4v2", 16, torch.float32)
    k, v = torch.zeros(1, 1, 64, 16), torch.zeros(1, 1, 64, 16)
    k[..., 3] = torch.arange(64) % 16 * 0.25 + 1.0  # 1 to 4.75: scale 0.25, middle 2.875, min 1
    v[0, 0, 5] = torch.arange(16) % 4 * 1.0 - 3.0  # -3 to 0: 3 * 0.86 / 3 = 0.86 -> 0.875, middle -1.5
    pages = close_pages(fmt, k, v)
    assert decode_scale(fmt.view(pages, "k_scale"))[0, 0, 3] == 0.25
    assert fmt.view(pages, "k_min")[0, 0, 3] == 1
    assert torch.equal(
        unpack_k_codes(fmt.view(pages, "k_codes"), 4)[0, 0, :, 3], (torch.arange(64) % 16).to(torch.uint8)
    )
    assert decode_scale(fmt.view(pages, "v_scale"))[0, 0, 0, 5] == 0.875
    assert fmt.view(pages, "v_zero")[0, 0, 0, 5] == -26  # (-1.5 - 0.875 * 1.5) / (0.875 / 8) = -25.71
    assert torch.equal(unpack_v_codes(fmt.view(pages, "v_codes"), 2)[0, 0, 5], (torch.arange(16) % 4).to(torch.uint8))


@pytest.mark.parametrize("value", [0.1, 1.0, -1.01, 1.99, -3000.0])
def test_a_constant_group_is_within_its_floor(value: float) -> None:
    """K: off by the rounding of its minimum to bf16 and half a scale that is 2**-8 / levels of it. V: by half of its floor's scale."""
    fmt = PageFormat.parse("k2v4", 64, torch.float32)
    constant = torch.full((1, 2, 64, 64), value)
    k, v = open_pages(fmt, close_pages(fmt, constant, -constant))
    assert ((k - value).abs() <= abs(value) * 2**-8 * (1 + 17 / 16 / 3 / 2)).all()
    assert ((v + value).abs() <= abs(value) / (118 * 0.5 - 7.5) * 17 / 16 / 2).all()
    assert k.unique().numel() == v.unique().numel() == 1


def test_zeros_are_nearly_zero() -> None:
    """An all-zero group has the smallest scale, 2**-20, and opens within half of it."""
    for name in CODED:
        fmt = PageFormat.parse(name, 16, torch.float32)
        zeros = torch.zeros(1, 1, 64, 16)
        pages = close_pages(fmt, zeros, zeros)
        assert (fmt.view(pages, "k_scale") == 0).all()
        assert (fmt.view(pages, "v_scale") == 0).all()
        for opened in open_pages(fmt, pages):
            assert (opened.abs() <= 2.0**-21).all()


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
    fmt = PageFormat(16, torch.float32, 2, 2, page_tokens=4)  # 4 bytes of v_scale and v_zero, each padded to 16
    k, v = torch.unflatten(random_kv(1, 8, 16), 2, (2, 4)).transpose(1, 2)
    out = reference.close_pages(fmt, k, v, torch.full((2, 1, fmt.page_bytes), 0xAB, dtype=torch.uint8))
    used = torch.zeros(fmt.page_bytes, dtype=torch.bool)
    for field in fmt.fields.values():
        used[field.offset : field.offset + field.num_bytes] = True
    assert not used.all()
    assert (out[..., ~used] == 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_poison_their_channel_of_k_and_saturate_in_v(bad: float) -> None:
    fmt = PageFormat.parse("k4v4", 128, torch.float32)
    k, v = blocks(1, 1, 128)
    good = open_pages(fmt, close_pages(fmt, k, v))
    k[0, 0, 10, 20], v[0, 0, 30, 70] = bad, bad
    pages = close_pages(fmt, k, v)
    opened_k, opened_v = open_pages(fmt, pages)
    assert not opened_k[..., 20].isfinite().any()
    assert opened_v.isfinite().all()
    assert decode_scale(fmt.view(pages, "v_scale"))[0, 0, 1, 30] == 3840
    opened_k[..., 20], opened_v[0, 0, 30, 64:] = good[0][..., 20], good[1][0, 0, 30, 64:]
    assert torch.equal(opened_k, good[0])
    assert torch.equal(opened_v, good[1])


def test_the_payload_of_a_nan_does_not_reach_the_bytes() -> None:
    fmt = PageFormat.parse("k4v4", 16, torch.float32)
    k, v = blocks(1, 1, 16)
    pages = []
    for payload in (0x7FC00000, -1, 0x7F800001):
        nan = torch.tensor(payload, dtype=torch.int32).view(torch.float32)
        k[..., 7, 2], v[..., 3, 2] = nan, nan
        pages.append(close_pages(fmt, k, v))
    assert torch.equal(pages[0], pages[1])
    assert torch.equal(pages[0], pages[2])
    assert (fmt.view(pages[0], "k_min").view(torch.int16)[..., 2] == 0x7FC0).all()
    assert (unpack_k_codes(fmt.view(pages[0], "k_codes"), 4)[..., 2] == 0).all()
