"""Attention of one decode step in all layers of a model: what the layers share is handed over once. Knows nothing of models."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .backend import choose
from .checks import BYTES, check_tensor
from .cpu.decode_plan import DecodePlan as NativePlan
from .decode_attention import run_decode
from .page_format import PageFormat


class DecodePlan(Protocol):
    """What `plan_decode` returns, for one step."""

    def attend(self, layer: int, q: Tensor, scale: float) -> Tensor:
        """`decode_attention` of q over the pages and residual of `layer`. The result may lie where that of the call before lay:
        it is valid until the next one. Raises IndexError for a layer that is not there, and what `decode_attention` raises."""
        ...


def plan_decode(
    fmt: PageFormat,
    pages: Tensor,
    page_table: Tensor,
    num_pages: Tensor,
    residual: Tensor,
    residual_rows: Tensor,
    residual_tokens: Tensor,
    *,
    dequant: bool = False,
) -> DecodePlan:
    """The step's `decode_attention`, layer by layer: as flashinfer's wrappers, planned once, run in every layer.

    pages            uint8 [layers, num_slots, kv_heads, page_bytes], all layers' pools
    residual         [layers, rows, 2 (K, V), kv_heads, residual_slots, head_dim] of fmt.dtype
    the others       as for `decode_attention`; the plan may read them, or copies that it made at first, in every call
    dequant          `fused_dequant_attention` instead, for benchmarks

    Pages and residual may be written between calls. Raises ValueError naming the bad argument; what depends on the queries is
    checked when they come.
    """
    check_tensor("pages", pages, ("layers", "num_slots", "kv_heads", fmt.page_bytes), BYTES)
    shape = (pages.shape[0], "rows", 2, pages.shape[2], fmt.residual_slots, fmt.head_dim)
    check_tensor("residual", residual, shape, (fmt.dtype,), pages.device)
    plan = NativePlan if choose(pages.device).name == "cpu" else _LayerByLayer
    return plan(fmt, pages, page_table, num_pages, residual, residual_rows, residual_tokens, dequant)


class _LayerByLayer:
    """For back ends where nothing is gained by a plan: the operation itself."""

    def __init__(
        self,
        fmt: PageFormat,
        pages: Tensor,
        page_table: Tensor,
        num_pages: Tensor,
        residual: Tensor,
        residual_rows: Tensor,
        residual_tokens: Tensor,
        dequant: bool,
    ) -> None:
        self._fmt, self._pages, self._residual = fmt, pages, residual
        self._history, self._exact = (page_table, num_pages), (residual_rows, residual_tokens)
        self._operation = "fused_dequant_attention" if dequant else "decode_attention"

    def attend(self, layer: int, q: Tensor, scale: float) -> Tensor:
        pages, residual = self._pages[layer], self._residual[layer]
        return run_decode(self._operation, self._fmt, q, pages, *self._history, residual, *self._exact, scale)
