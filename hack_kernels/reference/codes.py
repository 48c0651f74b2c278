"""Packing of codes into bytes, in the bit order of page_format's docstring. Knows nothing of pages or scales."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes below 2**bits [..., n] -> uint8 [..., n * bits / 8]; n must be a multiple of 8 / bits."""
    fields = torch.unflatten(codes, -1, (8 // bits, -1))
    packed = fields[..., 0, :].clone()
    for i in range(1, 8 // bits):
        packed |= fields[..., i, :] << (i * bits)
    return packed


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack_codes`: uint8 [..., m] -> uint8 codes [..., m * 8 / bits]."""
    if bits == 8:
        return packed
    mask = 2**bits - 1
    return torch.cat([(packed >> shift) & mask for shift in range(0, 8, bits)], dim=-1)
