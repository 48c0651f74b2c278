"""Packing of codes into 32-bit words, in the order of page_format's docstring. Knows nothing of pages or scales."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_k_codes(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes below 2**bits [..., tokens, head_dim] -> uint8 [..., head_dim * bits / 32, tokens, 4]: four channels to a word."""
    return torch.unflatten(_pack_rows(codes, bits), -1, (-1, 4)).transpose(-3, -2)


def unpack_k_codes(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack_k_codes`."""
    return _unpack_rows(packed.transpose(-3, -2).flatten(-2), bits)


def pack_v_codes(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes below 2**bits [..., tokens, head_dim] -> uint8 [..., tokens / 4, head_dim * bits / 8, 4]: four tokens to a word."""
    return torch.unflatten(_pack_rows(codes, bits), -2, (-1, 4)).transpose(-2, -1)


def unpack_v_codes(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack_v_codes`."""
    return _unpack_rows(packed.transpose(-2, -1).flatten(-3, -2), bits)


def _pack_rows(codes: Tensor, bits: int) -> Tensor:
    """[..., n] -> [..., n * bits / 8]: bits i*bits.. of byte j hold code j + i * (n * bits / 8)."""
    fields = torch.unflatten(codes, -1, (8 // bits, -1))
    packed = fields[..., 0, :].clone()
    for i in range(1, 8 // bits):
        packed |= fields[..., i, :] << (i * bits)
    return packed


def _unpack_rows(packed: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return packed
    mask = 2**bits - 1
    return torch.cat([(packed >> shift) & mask for shift in range(0, 8, bits)], dim=-1)
