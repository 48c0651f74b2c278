"""Quantize whole blocks of K and V into pages once, and open pages again for tests and tools. Knows nothing of pools."""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import implementation
from .checks import BYTES, check_tensor
from .page_format import PageFormat


def close_pages(fmt: PageFormat, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
    """k, v [num_pages, kv_heads, page_tokens, head_dim] of fmt.dtype or float32 -> uint8 [num_pages, kv_heads, page_bytes].

    The same values give the same bytes, on every back end. `out` receives the pages where given. A value that is not finite does
    not fail: a channel of K opens as NaN or infinite, and attention to the page gives NaN; in V it saturates.
    Raises ValueError naming the bad argument.
    """
    dtypes = (fmt.dtype, torch.float32)
    check_tensor("k", k, ("num_pages", "kv_heads", fmt.page_tokens, fmt.head_dim), dtypes)
    check_tensor("v", v, tuple(k.shape), dtypes, k.device)
    if out is not None:
        check_tensor("out", out, (*k.shape[:2], fmt.page_bytes), BYTES, k.device)
    result: Tensor = implementation(k.device, "close_pages")(fmt, k, v, out)
    return result


def open_pages(fmt: PageFormat, pages: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [..., page_bytes] -> what K and V the pages stand for, float32 [..., page_tokens, head_dim] each.

    Raises ValueError naming the bad argument.
    """
    check_tensor("pages", pages, (..., fmt.page_bytes), BYTES)
    k, v = implementation(pages.device, "open_pages", "close_pages")(fmt, pages)
    return k, v
