"""The byte layout: offsets, sizes, views, names, and which token lies where."""

from __future__ import annotations

import hashlib

import pytest
import torch

from hack_kernels import PageFormat, close_pages
from hack_kernels.page_format import BITS, LAYOUT_VERSION

CODED = [(k_bits, v_bits) for k_bits in BITS for v_bits in BITS]
DIGESTS = {"k2v2": "2c1fa7e06f1cb4e5", "k4v4": "a11f423fe0edd077", "k8v8": "1601baa356cd65cc"}


@pytest.mark.parametrize("head_dim", [16, 48, 64, 80, 128, 256])
@pytest.mark.parametrize(("k_bits", "v_bits"), [*CODED, (None, None)])
def test_fields_are_aligned_and_do_not_overlap(head_dim: int, k_bits: int | None, v_bits: int | None) -> None:
    fmt = PageFormat(head_dim, torch.bfloat16, k_bits, v_bits)
    end = 0
    for field in fmt.fields.values():
        assert field.offset % 16 == 0
        assert end <= field.offset < end + 16
        end = field.offset + field.num_bytes
    assert fmt.page_bytes % 16 == 0
    assert end <= fmt.page_bytes < end + 16


def test_two_bit_pages_are_an_eighth_and_their_scales() -> None:
    # 2 of 16 bits is 12.5 %; per page of 64 x 64, K's 64 bytes and 64 bf16 and V's 2 x 64 bytes over 2 x 64 x 64 bf16 add 1.953 %
    raw, coded = PageFormat.parse("raw", 64, torch.bfloat16), PageFormat.parse("k2v2", 64, torch.bfloat16)
    assert raw.page_bytes == 2 * 64 * 64 * 2
    assert coded.page_bytes == 2368
    assert round(coded.page_bytes / raw.page_bytes, 5) == 0.14453


def test_the_layout_does_not_change_by_accident() -> None:
    fmt = PageFormat.parse("k4v2", 128, torch.bfloat16)
    fields = {name: (field.offset, field.shape, field.dtype) for name, field in fmt.fields.items()}
    assert LAYOUT_VERSION == 2
    assert fields == {
        "k_codes": (0, (16, 64, 4), torch.uint8),
        "k_scale": (4096, (128,), torch.uint8),
        "k_min": (4224, (128,), torch.bfloat16),
        "v_codes": (4480, (16, 32, 4), torch.uint8),
        "v_scale": (6528, (2, 64), torch.uint8),
        "v_zero": (6656, (2, 64), torch.int8),
    }
    assert fmt.page_bytes == 6784


def test_the_bytes_of_a_page_do_not_change_by_accident() -> None:
    """Every byte of a page made of a fixed pattern: a change of layout or quantizer must raise LAYOUT_VERSION and this."""
    token, channel = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    k = ((token * 37 + channel * 11) % 101).float() / 8 - 5
    v = ((token * 23 + channel * 7) % 97).float() / 16 - 1
    digests = {
        name: hashlib.sha256(
            close_pages(PageFormat.parse(name, 64, torch.float32), k[None, None], v[None, None]).numpy().tobytes()
        ).hexdigest()[:16]
        for name in ("k2v2", "k4v4", "k8v8")
    }
    assert digests == DIGESTS


@pytest.mark.parametrize("name", ["raw", "k2v8"])
def test_views_share_memory_and_cover_their_field_alone(name: str) -> None:
    fmt = PageFormat.parse(name, 64, torch.float32)
    pages = torch.zeros(3, 2, fmt.page_bytes, dtype=torch.uint8)
    for field_name, field in fmt.fields.items():
        pages.zero_()
        view = fmt.view(pages, field_name)
        assert view.shape == (3, 2, *field.shape)
        assert view.dtype == field.dtype
        view.view(torch.uint8).fill_(0xAB)
        touched = (pages != 0).nonzero()[:, -1].unique()
        assert touched.tolist() == list(range(field.offset, field.offset + field.num_bytes))


@pytest.mark.parametrize(("head_dim", "groups"), [(16, 1), (64, 1), (80, 2), (96, 2), (128, 2), (256, 4)])
def test_channel_groups(head_dim: int, groups: int) -> None:
    fmt = PageFormat(head_dim, torch.float32, 4, 4)
    assert fmt.v_groups == groups
    assert fmt.group_channels * groups == head_dim


@pytest.mark.parametrize(
    ("tokens", "pages", "residual"), [(0, 0, 0), (1, 0, 1), (4, 0, 4), (67, 0, 67), (68, 1, 4), (69, 1, 5), (132, 2, 4)]
)
def test_pages_and_residual_share_the_tokens(tokens: int, pages: int, residual: int) -> None:
    fmt = PageFormat.parse("k2v2", 64, torch.float32)
    assert (fmt.num_pages(tokens), fmt.residual_tokens(tokens)) == (pages, residual)


@pytest.mark.parametrize("name", ["raw", "k2v2", "k8v4"])
def test_names_round_trip(name: str) -> None:
    assert PageFormat.parse(name, 64, torch.float16).name == name


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: PageFormat.parse("k3v2", 64, torch.float32), "k3v2"),
        (lambda: PageFormat(64, torch.float32, 3, 2), "k_bits=3"),
        (lambda: PageFormat(64, torch.float32, 2, None), "v_bits=None"),
        (lambda: PageFormat(60, torch.float32), "head_dim=60"),
        (lambda: PageFormat(24, torch.float32, 2, 8), "head_dim=24 with k_bits=2"),
        (lambda: PageFormat(64, torch.float32, 2, 2, page_tokens=30), "page_tokens=30"),
        (lambda: PageFormat(64, torch.float64), "float64"),
    ],
)
def test_bad_formats_are_refused_by_name(make: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()  # type: ignore[operator]
