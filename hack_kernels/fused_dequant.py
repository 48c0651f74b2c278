"""The yardstick: decode attention on the same pages that dequantizes codes in registers. For benchmarks; no worker serves with it."""

from __future__ import annotations

from torch import Tensor

from .decode_attention import run_decode
from .page_format import PageFormat


def fused_dequant_attention(
    fmt: PageFormat,
    q: Tensor,
    pages: Tensor,
    page_table: Tensor,
    num_pages: Tensor,
    residual: Tensor,
    residual_rows: Tensor,
    residual_tokens: Tensor,
    scale: float,
) -> Tensor:
    """As `decode_attention`, argument by argument, with K and V as the pages stand for them and queries that are not quantized.

    What is called fused dequantization elsewhere, written with the same care as attention on codes: codes are expanded in place
    into bf16 or float32, and scales are folded into queries and weights. Raises ValueError naming the bad argument.
    """
    arguments = (q, pages, page_table, num_pages, residual, residual_rows, residual_tokens)
    return run_decode("fused_dequant_attention", fmt, *arguments, scale)
