"""Decode attention that dequantizes pages in registers, natively: bf16 dot products where the CPU has them, else float32."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .decode_attention import decode_attention


def fused_dequant_attention(*arguments: Any) -> Tensor:
    """See hack_kernels/fused_dequant.py."""
    return decode_attention(*arguments, dequant=True)
