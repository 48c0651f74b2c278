"""One decode step's attention of a layer on codes, natively: tasks over (sequence, KV head, range of pages), merged by log-sum-exp.

A step makes the same call once per layer, and what other code ran between has left this file's cold. So all that follows from
types, shapes and strides is worked out once and kept as a plan: what is left of a call is looking that up, and addresses.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from hack_kernels.decode_checks import check_decode, check_decode_values
from hack_kernels.page_format import PageFormat

from .library import (
    DTYPES,
    MAX_ROWS,
    BadValue,
    Decode,
    Pool,
    Residual,
    Run,
    call,
    format_struct,
    readable,
    run_numbers,
)

MOST_PLANS = 1024  # batches and page tables come in many shapes


def decode_attention(
    fmt: PageFormat,
    q: Tensor,
    pages: Tensor,
    page_table: Tensor,
    num_pages: Tensor,
    residual: Tensor,
    residual_rows: Tensor,
    residual_tokens: Tensor,
    scale: float,
    *,
    dequant: bool = False,
) -> Tensor:
    """See hack_kernels/decode_attention.py. `dequant`: codes are dequantized in registers instead, as fused_dequant.py says."""
    tensors = (q, pages, page_table, num_pages, residual, residual_rows, residual_tokens)
    try:
        places = [(x.shape, x.stride(), x.dtype, x.is_cpu) for x in tensors]
        plan = _plans.get(key := (fmt, scale, dequant, *run_numbers(), *places))
    except (AttributeError, TypeError):  # one is no tensor, or no format
        check_decode(fmt, *tensors)
        raise
    if plan is None:
        check_decode(fmt, *tensors)
        if any(x.shape[-1] > 1 and x.stride(-1) != 1 for x in tensors):
            q, pages, page_table, num_pages, residual, residual_rows, residual_tokens = map(readable, tensors)
            rest = (num_pages, residual, residual_rows, residual_tokens)
            return decode_attention(fmt, q, pages, page_table, *rest, scale, dequant=dequant)
        plan = _keep(key, _make_plan(fmt, scale, dequant, q, pages, page_table, residual))
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    try:
        call("packhorse_decode", plan, out.data_ptr(), *[x.data_ptr() for x in tensors])
    except BadValue:
        check_decode_values(fmt, *tensors)
        raise
    return out


_plans: dict[Hashable, Decode] = {}


def _keep(key: Hashable, plan: Decode) -> Decode:
    if len(_plans) >= MOST_PLANS:
        _plans.clear()
    _plans[key] = plan
    return plan


def _make_plan(
    fmt: PageFormat, scale: float, dequant: bool, q: Tensor, pages: Tensor, page_table: Tensor, residual: Tensor
) -> Decode:
    """All of a call but the addresses."""
    batch, *several, heads, head_dim = q.shape
    queries, kv_heads, strides = (several or [1])[0], pages.shape[1], q.stride()
    if queries * (group := heads // kv_heads) > MAX_ROWS:
        raise ValueError(f"q has {queries * group} queries per KV head, more than {MAX_ROWS}")
    return Decode(
        format_struct(fmt), Run(*run_numbers(), dequant),
        Pool(None, *pages.stride()[:2]), Residual(None, *residual.stride()[:4]),
        batch, queries, kv_heads, group, None, None,
        DTYPES[q.dtype], strides[0], strides[-3] if several else 0, strides[-2],
        queries * heads * head_dim, heads * head_dim, head_dim,
        None, None, None, None, page_table.stride(0), page_table.shape[1], pages.shape[0], residual.shape[0], scale,
    )  # fmt: skip
