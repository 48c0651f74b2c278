"""How many pages a job needs on a decode worker, and their bytes: the page format's arithmetic from plain numbers, without torch.

`hack_kernels/page_format.py` defines the format; a test holds that both agree.
"""

from __future__ import annotations

import re

from transport.messages import Job, KVLayout
from transport.payload_sizes import num_pages, page_layer_bytes, residual_bytes

__all__ = [
    "KV_FORMATS",
    "LAYOUT_VERSION",
    "PAGE_TOKENS",
    "SINK_TOKENS",
    "num_pages",
    "page_bytes",
    "pages_needed",
    "stored_bytes",
]

PAGE_TOKENS = 64
SINK_TOKENS = 4
LAYOUT_VERSION = 2
KV_FORMATS = ("raw", *(f"k{k}v{v}" for k in (8, 4, 2) for v in (8, 4, 2)))
_SCALE_BYTES, _K_MIN_BYTES, _V_ZERO_BYTES = 1, 2, 1
_WORD_BITS = 32
_MAX_GROUP_CHANNELS = 64
_ALIGNMENT = 16


def pages_needed(job: Job, layout: KVLayout) -> int:
    """Pages to reserve: those of the longest sequence that the job can become."""
    return num_pages(len(job.prompt) + job.sampling.max_tokens, layout)


def stored_bytes(tokens: int, layout: KVLayout) -> int:
    """Of a sequence of `tokens`: its closed pages and its residual, in all layers."""
    pages = num_pages(tokens, layout)
    rest = residual_bytes(layout, tokens - pages * layout.page_tokens)
    return layout.layers * (pages * page_layer_bytes(layout) + rest)


def page_bytes(kv_format: str, head_dim: int, dtype_bytes: int, page_tokens: int = PAGE_TOKENS) -> int:
    """Bytes of one page of one KV head of one layer; `dtype_bytes` is the size of a raw value.

    Raises ValueError for a format that is not one of KV_FORMATS, and for a head_dim that the format does not have.
    """
    if kv_format == "raw":
        return 2 * _aligned(page_tokens * head_dim * dtype_bytes)
    match = re.fullmatch(r"k([248])v([248])", kv_format)
    if not match:
        raise ValueError(f"KV format {kv_format!r} is not one of {', '.join(KV_FORMATS)}")
    k_bits, v_bits = map(int, match.groups())
    if head_dim * k_bits % _WORD_BITS:
        raise ValueError(f"head_dim={head_dim} with {kv_format}: K's codes do not fill words of {_WORD_BITS} bits")
    groups = head_dim // max(n for n in range(1, _MAX_GROUP_CHANNELS + 1) if head_dim % n == 0)
    k = (page_tokens * head_dim * k_bits // 8, head_dim * _SCALE_BYTES, head_dim * _K_MIN_BYTES)
    v = (
        page_tokens * head_dim * v_bits // 8,
        page_tokens * groups * _SCALE_BYTES,
        page_tokens * groups * _V_ZERO_BYTES,
    )
    return sum(map(_aligned, k + v))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
