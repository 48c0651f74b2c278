"""The scheduler's page arithmetic is the page format's, for every format, head size and type."""

from __future__ import annotations

import pytest
import torch

from hack_kernels.page_format import BITS, LAYOUT_VERSION, PAGE_TOKENS, SINK_TOKENS, PageFormat
from scheduler import pages


def test_constants_agree() -> None:
    ours = (pages.PAGE_TOKENS, pages.SINK_TOKENS, pages.LAYOUT_VERSION)
    assert ours == (PAGE_TOKENS, SINK_TOKENS, LAYOUT_VERSION)
    assert set(pages.KV_FORMATS) == {"raw"} | {f"k{k}v{v}" for k in BITS for v in BITS}


@pytest.mark.parametrize("kv_format", pages.KV_FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_page_bytes_agree(kv_format: str, dtype: torch.dtype) -> None:
    for head_dim in (8, 16, 24, 40, 64, 80, 96, 112, 128, 192, 256):
        try:
            fmt = PageFormat.parse(kv_format, head_dim, dtype)
        except ValueError:
            with pytest.raises(ValueError, match=f"head_dim={head_dim}"):
                pages.page_bytes(kv_format, head_dim, dtype.itemsize)
            continue
        assert pages.page_bytes(kv_format, head_dim, dtype.itemsize) == fmt.page_bytes, head_dim


def test_an_unknown_format_is_named_with_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"'k3v2' is not one of raw, k8v8"):
        pages.page_bytes("k3v2", 64, 2)
