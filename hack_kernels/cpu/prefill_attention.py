"""One prefill chunk's attention on the CPU: exact keys as the reference computes them, the history of pages natively."""

from __future__ import annotations

import torch
from torch import Tensor

from hack_kernels.page_format import PageFormat
from hack_kernels.reference import prefill_attention as reference
from hack_kernels.reference.partial import Partial

from .library import History, call, format_struct, pool_struct, readable, run


def prefill_attention(
    fmt: PageFormat,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    pages: Tensor | None = None,
    page_slots: Tensor | None = None,
) -> Tensor:
    """See hack_kernels/prefill_attention.py."""
    return reference.prefill_attention(fmt, q, k, v, scale, pages, page_slots, attend=attend_history)


def attend_history(fmt: PageFormat, start: Partial, q: Tensor, pages: Tensor, slots: Tensor, owner: Tensor) -> Partial:
    """As reference/history.py's, for one entry of q: [1, kv_heads, rows, head_dim]."""
    q, pages, slots = q.contiguous(), readable(pages), slots.contiguous()
    part = Partial(torch.empty(q.shape[:3]), torch.empty(q.shape[:3]), torch.empty(q.shape))
    call(
        "packhorse_history",
        History(
            format_struct(fmt), run(), pool_struct(pages), q.shape[1], q.shape[2], slots.shape[0], slots.data_ptr(),
            q.data_ptr(), part.top.data_ptr(), part.total.data_ptr(), part.out.data_ptr(),
        ),
    )  # fmt: skip
    return start.merge(part, owner[:1])
