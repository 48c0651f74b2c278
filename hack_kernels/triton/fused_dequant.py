"""Decode attention that dequantizes pages in registers: the yardstick for attention on codes. For benchmarks; no worker serves with it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .decode_attention import decode_attention


def fused_dequant_attention(*arguments: Any) -> Tensor:
    """See hack_kernels/fused_dequant.py."""
    return decode_attention(*arguments, dequant=True)
