"""Packing: the bit order is the format's, and nothing is lost."""

from __future__ import annotations

import pytest
import torch

from hack_kernels import pack_codes, unpack_codes


def test_two_bit_order() -> None:
    # 8 channels in 2 bytes: byte j holds channels j, j + 2, j + 4, j + 6 from its low bits up
    codes = torch.tensor([0, 1, 2, 3, 1, 0, 3, 2], dtype=torch.uint8)
    assert pack_codes(codes, 2).tolist() == [0b11_01_10_00, 0b10_00_11_01]


def test_four_bit_order() -> None:
    codes = torch.tensor([1, 2, 3, 4, 5, 6, 7, 15], dtype=torch.uint8)
    assert pack_codes(codes, 4).tolist() == [0x51, 0x62, 0x73, 0xF4]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("channels", [8, 24, 256])
def test_round_trip(bits: int, channels: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 5, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = pack_codes(codes, bits)
    assert packed.shape == (3, 5, channels * bits // 8)
    assert torch.equal(unpack_codes(packed, bits), codes)
