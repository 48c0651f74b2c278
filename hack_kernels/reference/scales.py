"""E5M3, the 8-bit code of a scale: positive, 5 bits of exponent and 3 of mantissa. Knows nothing of pages.

Code u stands for 2**(e - 20) * (1 + m / 8) with e = u >> 3 and m = u & 7: from 2**-20 to 3840, in steps of at most an eighth, with
no zero, infinity or NaN. As float32 it is u << 20 above the bits of 2**-20, so one shift and one addition decode it.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MANTISSA_SHIFT = 20
_FIRST = (127 - 20) << 23  # the bits of 2**-20


def encode_scale(x: Tensor) -> Tensor:
    """float32 -> uint8, to the nearest (ties to even); what lies outside the range saturates, NaN and infinity at the upper end."""
    bits = (x.view(torch.int32) & 0x7FFFFFFF) - _FIRST
    rounded = (bits + 0x7FFFF + ((bits >> _MANTISSA_SHIFT) & 1)) >> _MANTISSA_SHIFT
    return rounded.clamp_(0, 255).to(torch.uint8)


def decode_scale(code: Tensor) -> Tensor:
    """uint8 -> float32, exact."""
    return ((code.to(torch.int32) << _MANTISSA_SHIFT) + _FIRST).view(torch.float32)
