"""E5M3: every code decodes to its value and back, numbers go to the nearest, ties to even, and nothing wraps around."""

from __future__ import annotations

import torch

from hack_kernels.reference.scales import decode_scale, encode_scale

CODES = torch.arange(256).to(torch.uint8)


def test_every_code_has_its_value_and_comes_back() -> None:
    expected = [2.0 ** ((u >> 3) - 20) * (1 + (u & 7) / 8) for u in range(256)]
    assert decode_scale(CODES).tolist() == expected
    assert torch.equal(encode_scale(decode_scale(CODES)), CODES)


def test_rounds_to_the_nearest_and_ties_to_even() -> None:
    values = decode_scale(CODES).double()
    middles = ((values[:-1] + values[1:]) / 2).float()  # exact: one more bit of mantissa
    assert torch.equal(encode_scale(middles), (CODES[:-1] + 1) // 2 * 2)
    assert torch.equal(encode_scale(middles.nextafter(torch.tensor(0.0))), CODES[:-1])
    assert torch.equal(encode_scale(middles.nextafter(torch.tensor(torch.inf))), CODES[1:])


def test_what_lies_outside_saturates() -> None:
    low = torch.tensor([0.0, -0.0, 1e-45, 1e-38, 2.0**-21])
    high = torch.tensor([3841.0, 1e5, 3.4e38, torch.inf, torch.nan, -torch.nan])
    assert encode_scale(low).tolist() == [0] * 5
    assert encode_scale(high).tolist() == [255] * 6
