"""What both ends of a page stream must agree on, for one model and one page format."""

from __future__ import annotations

from hack_kernels.page_format import LAYOUT_VERSION, PageFormat
from transport.messages import KVLayout

from .adapter import ModelInfo


def kv_layout(info: ModelInfo, fmt: PageFormat) -> KVLayout:
    """The layout of `info`'s pages in `fmt`. Raises ValueError if the format is for another head_dim or dtype."""
    if (fmt.head_dim, fmt.dtype) != (info.head_dim, info.dtype):
        raise ValueError(
            f"page format of head_dim {fmt.head_dim}, {fmt.dtype} does not fit {info.name!r}: {info.head_dim}, {info.dtype}"
        )
    return KVLayout(
        model=info.name,
        revision=info.revision,
        layers=info.layers,
        kv_heads=info.kv_heads,
        head_dim=info.head_dim,
        dtype=str(info.dtype).removeprefix("torch."),
        kv_format=fmt.name,
        page_tokens=fmt.page_tokens,
        sink_tokens=fmt.sink_tokens,
        page_bytes=fmt.page_bytes,
        layout_version=LAYOUT_VERSION,
    )
