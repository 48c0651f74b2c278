"""Packing: the order is the format's, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hack_kernels.reference.codes import pack_k_codes, pack_v_codes, unpack_k_codes, unpack_v_codes


def test_k_words_hold_four_channels_of_a_token() -> None:
    # 16 channels of 2 bits: one word, whose byte b holds channels b, b + 4, b + 8, b + 12 from its low bits up
    codes = torch.tensor([[0, 1, 2, 3, 1, 0, 3, 2, 2, 2, 2, 2, 3, 0, 0, 1], [3] * 16], dtype=torch.uint8)
    packed = pack_k_codes(codes, 2)
    assert packed.shape == (1, 2, 4)
    assert packed[0].tolist() == [[0b11_10_01_00, 0b00_10_00_01, 0b00_10_11_10, 0b01_10_10_11], [0xFF] * 4]


def test_v_words_hold_four_tokens_of_a_channel() -> None:
    codes = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 0]], dtype=torch.uint8)
    packed = pack_v_codes(codes, 4)  # two bytes per token: channels 0 and 2, 1 and 3
    assert packed.shape == (1, 2, 4)
    assert packed[0].tolist() == [[0x31, 0x75, 0xB9, 0xFD], [0x42, 0x86, 0xCA, 0x0E]]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("channels", [16, 48, 256])
@pytest.mark.parametrize(
    ("pack", "unpack", "words"),
    [
        (pack_k_codes, unpack_k_codes, lambda tokens, size: (size // 4, tokens, 4)),
        (pack_v_codes, unpack_v_codes, lambda tokens, size: (tokens // 4, size, 4)),
    ],
    ids=["k", "v"],
)
def test_round_trip(
    pack: Callable[[Tensor, int], Tensor],
    unpack: Callable[[Tensor, int], Tensor],
    words: Callable[[int, int], tuple[int, ...]],
    bits: int,
    channels: int,
) -> None:
    codes = torch.randint(0, 2**bits, (3, 8, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = pack(codes, bits)
    assert packed.shape == (3, *words(8, channels * bits // 8))
    assert torch.equal(unpack(packed, bits), codes)
