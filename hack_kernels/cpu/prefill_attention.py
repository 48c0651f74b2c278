"""One prefill chunk's attention on the CPU: with a history, natively, in tasks of a few rows that see exact tokens and pages.

Without history it is torch's own attention, as the reference has it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hack_kernels.page_format import PageFormat
from hack_kernels.reference import prefill_attention as reference

from .library import DTYPES, Prefill, call, format_struct, pool_struct, readable, run


def prefill_attention(
    fmt: PageFormat,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    pages: Tensor | None = None,
    page_slots: Tensor | None = None,
) -> Tensor:
    """See hack_kernels/prefill_attention.py. Temporary memory is a few rows for each thread."""
    if pages is None or page_slots is None or page_slots.shape[0] == 0:
        return reference.prefill_attention(fmt, q, k, v, scale)
    if k.dtype != v.dtype:
        k, v = k.float(), v.float()
    if k.stride() != v.stride() or k.stride(-1) != 1:
        k, v = k.contiguous(), v.contiguous()
    q, pages, slots = readable(q), readable(pages), page_slots.contiguous()
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    call(
        "packhorse_prefill",
        Prefill(
            format_struct(fmt), run(), pool_struct(pages), k.shape[0], q.shape[1] // k.shape[0], q.shape[0], k.shape[1],
            slots.shape[0], q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), slots.data_ptr(),
            DTYPES[q.dtype], DTYPES[k.dtype], *q.stride()[:2], *k.stride()[:2], scale,
        ),
    )  # fmt: skip
    return out
