"""Grow sequences by a token: append it to the residual before attention, close the block that it filled after. In place."""

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
    """Write each sequence's new token into its slot of the residual, in fmt.dtype. No page is written.

    k, v             [batch, kv_heads, head_dim], float
    pages            uint8 [num_slots, kv_heads, page_bytes], one layer's pool
    residual         [rows, 2 (K, V), kv_heads, residual_slots, head_dim] of fmt.dtype, one layer's, written
    residual_rows    int64 [batch], distinct
    num_tokens       int64 [batch], tokens before this one: its position
    open_slots       int64 [batch], the pool slot that will hold the open block, any number where there is none yet

    `pages` and `open_slots` are for back ends that prepare the open block's codes; the reference does not read them.
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
    implementation(k.device, "append")(fmt, k, v, pages, residual, residual_rows, num_tokens, open_slots)


def close_full_blocks(
    fmt: PageFormat, pages: Tensor, residual: Tensor, residual_rows: Tensor, num_tokens: Tensor, slots: Tensor
) -> None:
    """Quantize, for every sequence whose open block is full, that block into its pool slot. Call once per step, after attention.

    pages            uint8 [num_slots, kv_heads, page_bytes], one layer's pool, written
    residual         [rows, 2 (K, V), kv_heads, residual_slots, head_dim] of fmt.dtype, one layer's
    residual_rows    int64 [batch]
    num_tokens       int64 [batch], tokens now: the block is full where num_tokens - sink_tokens is a positive multiple of page_tokens
    slots            int64 [batch], distinct where the block is full; not read elsewhere

    Raises ValueError naming the bad argument; values are checked on the CPU alone.
    """
    check_pool(fmt, pages, "kv_heads")
    check_residual(fmt, residual, pages.shape[1], pages.device)
    check_tensor("residual_rows", residual_rows, ("batch",), INDICES, pages.device)
    for name, indices in (("num_tokens", num_tokens), ("slots", slots)):
        check_tensor(name, indices, (residual_rows.shape[0],), INDICES, pages.device)
    check_range("residual_rows", residual_rows, 0, residual.shape[0] - 1)
    check_range("num_tokens", num_tokens, 0, 2**62)
    full = (num_tokens > fmt.sink_tokens) & ((num_tokens - fmt.sink_tokens) % fmt.page_tokens == 0)
    if pages.device.type == "cpu":
        check_range("slots", slots[full], 0, pages.shape[0] - 1)
    implementation(pages.device, "close_full_blocks", "append")(fmt, pages, residual, residual_rows, num_tokens, slots)
