"""Grow sequences by a token: into the residual, and the block that it fills into a page. In place, before attention."""

from __future__ import annotations

from torch import Tensor

from .backend import implementation
from .checks import FLOATS, INDICES, check_pool, check_range, check_residual, check_tensor
from .page_format import PageFormat


def append(
    fmt: PageFormat,
    k: Tensor,
    v: Tensor,
    pages: Tensor,
    residual: Tensor,
    residual_rows: Tensor,
    num_tokens: Tensor,
    open_slots: Tensor,
) -> None:
    """Write each sequence's new token into its slot of the residual, in fmt.dtype; where it fills the open block, close that into a page.

    k, v             [batch, kv_heads, head_dim], float
    pages            uint8 [num_slots, kv_heads, page_bytes], one layer's pool, written
    residual         [rows, 2 (K, V), kv_heads, residual_slots, head_dim] of fmt.dtype, one layer's, written
    residual_rows    int64 [batch], distinct
    num_tokens       int64 [batch], tokens before this one: its position. The block fills where num_tokens + 1 - sink_tokens is a
                     positive multiple of page_tokens
    open_slots       int64 [batch], the pool slot for the open block's page, distinct where the block fills; not read elsewhere

    Call once per step, before attention. The block stays in the residual as well, until the next token is written over it, and
    attention in this step is not told of its page: so it sees the block exactly, and the next step sees its codes.
    Raises ValueError naming the bad argument; values are checked on the CPU alone.
    """
    check_tensor("k", k, ("batch", "kv_heads", fmt.head_dim), FLOATS)
    check_tensor("v", v, tuple(k.shape), FLOATS, k.device)
    check_pool(fmt, pages, k.shape[1], k.device)
    check_residual(fmt, residual, k.shape[1], k.device)
    for name, indices in (("residual_rows", residual_rows), ("num_tokens", num_tokens), ("open_slots", open_slots)):
        check_tensor(name, indices, (k.shape[0],), INDICES, k.device)
    check_range("residual_rows", residual_rows, 0, residual.shape[0] - 1)
    check_range("num_tokens", num_tokens, 0, 2**62)
    if k.device.type == "cpu":
        check_range("open_slots", open_slots[fmt.next_fills_page(num_tokens)], 0, pages.shape[0] - 1)
    implementation(k.device, "append")(fmt, k, v, pages, residual, residual_rows, num_tokens, open_slots)
