"""Split-KV attention over closed pages for the GPU: partial results of every split, which decode and prefill attention merge.

On codes, a program of one warp serves a sequence, a KV head and a split: 8 query rows of the KV head share the page's expanded codes,
and one warp waits for no other. Many small programs keep loads in flight. page_scores.py and page_values.py are what happens within a page.
"""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hack_kernels.page_format import PageFormat

from .dense import NEVER, attend_keys, empty_rows, split_terms
from .fragments import ROWS
from .launch import INTERPRETED, TRITON_DTYPES, last_contiguous, next_power_of_2, num_splits, query_terms
from .layout import layout_of
from .packed import to_halves
from .page_bias import load_bias_queries, page_bias
from .page_dequant import dequant_scores, prescale_queries, weigh_dequant_values
from .page_offsets import block_offset, total_weight, weigh_offsets
from .page_scores import LOG2_E, load_queries, page_scores
from .page_values import block_channels, block_weight, weigh_values

_RESCALE_AT = tl.constexpr(40.0)  # log2: float32 sums may outgrow their reference by this before they are scaled back

MAX_REGISTERS = 255  # of a thread, all there are
RAW_ROWS = 16  # the least that a product of Triton's takes as rows

Grid = tuple[int, int, int]


@triton.jit
def attend_pages(
    q, pages, page_table, num_pages, part_out, part_top, part_total, scale, slot_stride, head_stride, table_stride,
    count_stride, num_queries,
    HEADS: tl.constexpr, L: tl.constexpr, GROUP: tl.constexpr, QUERIES: tl.constexpr, TILES: tl.constexpr,
    TERMS: tl.constexpr, DEQUANT: tl.constexpr, PTX: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Programs (split and tile of rows, KV head, sequence): q [num_queries, HEADS, head_dim], QUERIES of them to a sequence.

    A sequence's QUERIES * GROUP rows of a KV head are cut into TILES of 8, which are neighbours in the grid: they read the same pages.
    part_out float32 [num_queries, heads, splits, head_dim], part_top (log2), part_total [.., splits]. Strides are in bytes for `pages`,
    in elements for tables and counts. A split without pages writes a total of 0, and no output.
    """
    kv_head = tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    split, first, last = split_range(num_pages, sequence * count_stride, TILES)
    first_row, row, valid = query_rows(sequence, kv_head, num_queries, HEADS, GROUP, QUERIES, ROWS, TILES)
    first_part, part = part_rows(first_row, row, split, TILES)
    q += first_row * L.head_dim
    part_total += first_part
    if first >= last:
        tl.store(part_total + part, tl.zeros((ROWS,), tl.float32), mask=valid)
        return
    queries, query_scale = load_queries(q, L.head_dim, row, valid, L, PTX)
    if DEQUANT:
        queries = prescale_queries(queries, L)
    bias_queries = load_bias_queries(q, L.head_dim, row, valid, L, TERMS)
    query_scale = query_scale * (scale * LOG2_E * 0.03125)

    state = empty_state(L)
    table = page_table + sequence * table_stride
    for index in tl.range(first, last, num_stages=STAGES):
        page = pages + tl.multiple_of(tl.load(table + index) * slot_stride + kv_head * head_stride, 16)
        state = attend_page(state, page, queries, bias_queries, query_scale, scale * LOG2_E, DEQUANT, L, PTX)

    top, out, total, offsets = state
    tl.store(part_top + first_part + part, top, mask=valid)
    tl.store(part_total + part, tl.max(total, 1), mask=valid)
    part_out += first_part * L.head_dim
    channel = block_channels(L)
    for block in tl.static_range(L.v_blocks):
        values = out[block] * block_weight(block, L) + block_offset(offsets, block, L)[None, :]
        pointers = part_out + part[None, :].to(tl.int64) * L.head_dim + block * L.v_rows + channel[:, None]
        tl.store(pointers, values, mask=(channel < L.v_rows)[:, None] & valid[None, :])


@triton.jit
def attend_page(
    state,
    page,
    queries,
    bias_queries,
    query_scale,
    bias_scale,
    DEQUANT: tl.constexpr,
    L: tl.constexpr,
    PTX: tl.constexpr,
):
    """One page added to `state`: reference score [ROWS], blocks of output, totals and offsets, both [ROWS, 4].

    Sums are kept relative to a reference score that rises only when a page's scores outgrow it by far, so that the usual page scales
    nothing back.
    """
    top, out, total, offsets = state
    if DEQUANT:
        dots, lacking, step = dequant_scores(page, queries, L, PTX)
    else:
        dots, lacking, step = page_scores(page, queries, L, PTX)
    step = step * query_scale
    bias = page_bias(page, bias_queries, L, PTX) * bias_scale
    if DEQUANT or L.k_bits == 8:
        bias += lacking * step[:, None]
    w, page_top = page_weights(dots, step, bias)
    w = to_halves(w, PTX)
    if tl.max(page_top - top, 0) > _RESCALE_AT:
        new_top = tl.maximum(top, page_top)
        keep = tl.exp2(top - new_top)
        total = total * keep[:, None]
        offsets = offsets * keep[:, None]
        out = _scale_all(out, keep)
        top = new_top
    share = tl.exp2(page_top - top)
    if DEQUANT:
        out = weigh_dequant_values(out, w, share, page, L, PTX)
        offsets += weigh_offsets(w, page, 0, L, PTX) * share[:, None]
    else:
        out = weigh_values(out, w, share, page, L, PTX)
        offsets += weigh_offsets(w, page, L.v_slot_tops, L, PTX) * share[:, None]
    return top, out, total + total_weight(w) * share[:, None], offsets


@triton.jit
def page_weights(dots, step, bias):
    """exp2(step * dots + bias - page_top), [ROWS, 4, 16] in 0..1, and page_top [ROWS], the largest score or a little more.

    dots [ROWS, 64]; step [ROWS]; bias [ROWS, 4], the same in all lanes. What is rounded on the way is at most 2**-22 of step * dots and
    bias: the largest score is raised by that, so that no weight exceeds 1.
    """
    dots = tl.reshape(dots, (ROWS, 4, 16))
    scaled = tl.max(dots, 2) * step[:, None]
    lane_top = scaled + bias + (tl.abs(scaled) + tl.abs(bias)) * 2.0**-22
    page_top = tl.max(lane_top, 1)
    return tl.exp2(dots * step[:, None, None] - (page_top[:, None] - bias)[:, :, None]), page_top


@triton.jit
def _scale_all(tensors, factor):
    scaled = ()
    COUNT: tl.constexpr = len(tensors)
    for i in tl.static_range(COUNT):
        scaled = scaled + (tensors[i] * factor[None, :],)
    return scaled


@triton.jit
def empty_state(L: tl.constexpr):
    out = ()
    for _ in tl.static_range(L.v_blocks):
        out = out + (tl.zeros((L.v_padded, ROWS), tl.float32),)
    return tl.full((ROWS,), NEVER, tl.float32), out, tl.zeros((ROWS, 4), tl.float32), tl.zeros((ROWS, 4), tl.float32)


@triton.jit
def query_rows(
    sequence, kv_head, num_queries, HEADS: tl.constexpr, GROUP: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """Rows of q [num_queries * HEADS, head_dim]: the sequence's first (int64), this program's tile [ROWS] relative to it, which exist.

    Tiles are rows that share a KV head and a sequence; 32 bits are half the registers, which live as long as the program.
    """
    row = tl.program_id(0) % TILES * ROWS + tl.arange(0, ROWS)
    query = row // GROUP
    valid = (row < QUERIES * GROUP) & (query < num_queries - sequence * QUERIES)
    return sequence * (QUERIES * HEADS), query * HEADS + kv_head * GROUP + row % GROUP, valid


@triton.jit
def part_rows(first_row, row, split, TILES: tl.constexpr):
    """Where a split's results lie in part_top and part_total: for the sequence's first row (int64), and rows' [ROWS] relative to it."""
    splits = tl.num_programs(0) // TILES
    return first_row * splits + split, row * splits


@triton.jit
def split_range(num_pages, at, TILES: tl.constexpr):
    """This program's split, the first of its pages, and one past the last."""
    count = tl.load(num_pages + at).to(tl.int32)
    each = tl.cdiv(count, tl.num_programs(0) // TILES)
    split = tl.program_id(0) // TILES
    return split, split * each, tl.minimum(split * each + each, count)


@triton.jit
def attend_raw_pages(
    q, pages, page_table, num_pages, part_out, part_top, part_total, scale, slot_stride, head_stride, table_stride,
    count_stride, num_queries,
    HEADS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    GROUP: tl.constexpr, QUERIES: tl.constexpr, TILES: tl.constexpr, TERMS: tl.constexpr, W_TERMS: tl.constexpr,
    DTYPE: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """As attend_pages, over raw pages and tiles of ROWS: K [TOKENS, DIM] of DTYPE, then V."""
    kv_head = tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    split, first, last = split_range(num_pages, sequence * count_stride, TILES)
    first_row, row, valid = query_rows(sequence, kv_head, num_queries, HEADS, GROUP, QUERIES, ROWS, TILES)
    first_part, part = part_rows(first_row, row, split, TILES)
    dims = tl.arange(0, PADDED)
    mask = valid[:, None] & (dims < DIM)[None, :]
    x = tl.load(q + first_row * DIM + row[:, None] * DIM + dims[None, :], mask=mask, other=0.0)
    queries = split_terms(x, DTYPE, TERMS)
    token = tl.arange(0, 64)
    state = empty_rows(ROWS, PADDED)
    for index in range(first, last):
        slot = tl.load(page_table + sequence * table_stride + index)
        keys = (pages + slot * slot_stride + kv_head * head_stride).to(tl.pointer_type(DTYPE))
        for start in range(0, TOKENS, 64):
            pointers = keys + (start + token)[:, None] * DIM + dims[None, :]
            inside = (start + token < TOKENS)[:, None] & (dims < DIM)[None, :]
            k = tl.load(pointers, mask=inside, other=0.0)
            v = tl.load(pointers + TOKENS * DIM, mask=inside, other=0.0)
            seen = tl.broadcast_to((start + token < TOKENS)[None, :], (ROWS, 64))
            state = attend_keys(state, queries, k, v, seen, scale * LOG2_E, W_TERMS, PTX)
    top, total, out = state
    tl.store(part_top + first_part + part, top, mask=valid)
    tl.store(part_total + first_part + part, total, mask=valid)
    tl.store(part_out + (first_part + part)[:, None] * DIM + dims[None, :], out, mask=mask)


def attend_history(
    fmt: PageFormat,
    q: Tensor,
    pages: Tensor,
    table: Tensor,
    table_stride: int,
    num_pages: Tensor,
    count_stride: int,
    scale: float,
    queries: int,
    dequant: bool = False,
) -> tuple[int, Tensor, Tensor, Tensor]:
    """q [num_queries, heads, head_dim], `queries` to a sequence, over the sequence's pages: splits, and what `attend_pages` writes.

    Sequence i's table begins table_stride * i into `table` [.., max_pages], its count is num_pages[count_stride * i].
    """
    num_queries, heads, dim = q.shape
    kv_heads, group = pages.shape[1], heads // pages.shape[1]
    sequences, tiles = -(-num_queries // queries), -(-queries * group // (RAW_ROWS if fmt.raw else ROWS.value))
    splits = num_splits(q.device, sequences * kv_heads * tiles, table.shape[-1]) if pages.shape[0] else 0
    part_out = q.new_empty(num_queries, heads, splits, dim, dtype=torch.float32)
    part_top, part_total = (q.new_empty(num_queries, heads, splits, dtype=torch.float32) for _ in range(2))
    if splits:
        pages = last_contiguous(pages)
        arguments = (
            q, pages, table, num_pages, part_out, part_top, part_total, float(scale), *pages.stride()[:2],
            table_stride, count_stride, num_queries,
        )  # fmt: skip
        shared = {"HEADS": heads, "GROUP": group, "QUERIES": queries, "TILES": tiles, "PTX": not INTERPRETED}
        grid = (splits * tiles, kv_heads, sequences)
        (_launch_raw if fmt.raw else _launch_coded)(fmt, grid, arguments, shared, q.dtype, dequant)
    return splits, part_out, part_top, part_total


def _launch_coded(
    fmt: PageFormat, grid: Grid, arguments: tuple[Any, ...], shared: dict[str, Any], dtype: torch.dtype, dequant: bool
) -> None:
    attend_pages[grid](
        *arguments, **shared, L=layout_of(fmt), TERMS=query_terms(dtype, torch.bfloat16), DEQUANT=dequant, STAGES=1,
        num_warps=1, num_stages=1, maxnreg=register_limit(fmt),
    )  # fmt: skip


def register_limit(fmt: PageFormat) -> int | None:
    """What the assembler is told of a thread's registers in `attend_pages`; None leaves it to itself.

    Left so it spills at head_dim 64, for more programs at once; told of all it spills beyond 128 (8-bit codes), where it takes all anyway.
    """
    return MAX_REGISTERS if fmt.head_dim <= 128 else None


def _launch_raw(
    fmt: PageFormat, grid: Grid, arguments: tuple[Any, ...], shared: dict[str, Any], dtype: torch.dtype, dequant: bool
) -> None:
    attend_raw_pages[grid](
        *arguments, **shared, DIM=fmt.head_dim, PADDED=max(16, next_power_of_2(fmt.head_dim)),
        TOKENS=fmt.page_tokens, ROWS=RAW_ROWS, TERMS=query_terms(dtype, fmt.dtype),
        W_TERMS=1 if fmt.dtype == torch.float32 else 2, DTYPE=TRITON_DTYPES[fmt.dtype], num_warps=4,
    )  # fmt: skip
