"""Quantize blocks of K and V into pages, and back: the specification. Knows nothing of pools or sequences.

K is grouped per channel over the page's tokens, V per token over `group_channels` channels. In each group, with hi and lo its
largest and smallest value, levels = 2**bits - 1 and half = levels / 2, all in float32 with every step rounded to the nearest:

    range = hi - lo;  mid = (hi + lo) / 2
    scale = E5M3 of max(range * CLIP[bits] / levels, |mid| * floor)
    K:  min = bf16 of mid - scale * half;                                             floor = 2**-8 / levels
    V:  min = zero * unit * scale, unit = 2**(bits - 5), zero an int8 so that min is nearest to mid - scale * half;
                                                                                      floor = 1 / (118 * unit - half)
    code = (x - min) / scale, to the nearest (ties to even), within 0..levels

The grid min..min + levels * scale is centred on mid. At 2 bits it is narrower than the range, so the group's largest values are
clipped: rounding all others more finely is worth more (docs/page-format.md has the figures). `floor` keeps the grid
of K as wide as bf16 rounds its min (by at most |min| / 256), and V's zero within -127..127 (E5M3 may round a scale down by a seventeenth).
A value inside the grid is off by at most scale / 2, one outside by its distance from it, up to float32's rounding.

The bytes depend on the values alone: the sign of zero and the payload of a NaN do not matter, padding is 0. A NaN or infinity in a
channel of K makes its min non-finite, so attention to the page yields NaN. In V it saturates; the code of a NaN is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hack_kernels.page_format import PageFormat

from .codes import pack_k_codes, pack_v_codes, unpack_k_codes, unpack_v_codes
from .scales import decode_scale, encode_scale

CLIP = {2: 0.86, 4: 1.0, 8: 1.04}
MAX_ZERO = 127
ZERO_HEADROOM = 118  # times 17/16, by which a scale may have been rounded down, is below MAX_ZERO


def close_pages(fmt: PageFormat, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
    """See hack_kernels/close_pages.py."""
    if out is None:
        out = k.new_empty(*k.shape[:2], fmt.page_bytes, dtype=torch.uint8)
    if sum(field.num_bytes for field in fmt.fields.values()) < fmt.page_bytes:
        out.zero_()
    if fmt.k_bits is None or fmt.v_bits is None:
        fields = {"k": k, "v": v}
    else:
        fields = _quantize_k(k.float(), fmt.k_bits) | _quantize_v(fmt, v.float(), fmt.v_bits)
    for name, values in fields.items():
        fmt.view(out, name).copy_(values)
    return out


def open_pages(fmt: PageFormat, pages: Tensor) -> tuple[Tensor, Tensor]:
    """See hack_kernels/close_pages.py."""
    if fmt.k_bits is None or fmt.v_bits is None:
        return fmt.view(pages, "k").float(), fmt.view(pages, "v").float()
    k_codes = unpack_k_codes(fmt.view(pages, "k_codes"), fmt.k_bits).float()
    k_scale = decode_scale(fmt.view(pages, "k_scale"))
    k = k_codes * k_scale.unsqueeze(-2) + fmt.view(pages, "k_min").float().unsqueeze(-2)
    v_codes = torch.unflatten(unpack_v_codes(fmt.view(pages, "v_codes"), fmt.v_bits).float(), -1, (fmt.v_groups, -1))
    v_scale, v_offset = (x.mT.unsqueeze(-1) for x in open_v_groups(fmt, pages))  # [..., page_tokens, v_groups, 1]
    return k, ((v_codes + v_offset) * v_scale).flatten(-2)


def open_v_groups(fmt: PageFormat, pages: Tensor) -> tuple[Tensor, Tensor]:
    """v_scale, and v_zero in steps of a code, float32 [..., v_groups, page_tokens] each: v ~ scale * (code + offset)."""
    assert fmt.v_bits is not None
    return decode_scale(fmt.view(pages, "v_scale")), fmt.view(pages, "v_zero").float() * 2.0 ** (fmt.v_bits - 5)


def k_floor(bits: int) -> float:
    return float(2.0**-8 / (2**bits - 1))


def v_floor(bits: int) -> float:
    return float(1 / (ZERO_HEADROOM * 2.0 ** (bits - 5) - (2**bits - 1) / 2))


def _quantize_k(k: Tensor, bits: int) -> dict[str, Tensor]:
    levels = 2**bits - 1
    scale, mid = _scale_and_middle(k, bits, k_floor(bits), dim=-2)  # [..., 1, head_dim]
    step = decode_scale(scale)
    minimum = (mid - step * (levels / 2)).to(torch.bfloat16)
    minimum = minimum.masked_fill_(minimum.isnan(), torch.nan)  # one NaN of the many
    return {
        "k_codes": pack_k_codes(_round(k, minimum.float(), step, bits), bits),
        "k_scale": scale.squeeze(-2),
        "k_min": minimum.squeeze(-2),
    }


def _quantize_v(fmt: PageFormat, v: Tensor, bits: int) -> dict[str, Tensor]:
    half, unit = (2**bits - 1) / 2, 2.0 ** (bits - 5)
    groups = torch.unflatten(v, -1, (fmt.v_groups, -1))
    scale, mid = _scale_and_middle(groups, bits, v_floor(bits), dim=-1)  # [..., tokens, groups, 1]
    step = decode_scale(scale)
    zero = ((mid - step * half) * (step.reciprocal() * (1 / unit))).round_()
    zero = zero.nan_to_num_(nan=0.0).clamp_(-MAX_ZERO, MAX_ZERO)
    return {
        "v_codes": pack_v_codes(_round(groups, zero * unit * step, step, bits).flatten(-2), bits),
        "v_scale": scale.squeeze(-1).mT,
        "v_zero": zero.squeeze(-1).mT,
    }


def _scale_and_middle(x: Tensor, bits: int, floor: float, dim: int) -> tuple[Tensor, Tensor]:
    """float32 x -> the scales' codes and the middles, with size 1 at `dim`, the grouped dimension. A NaN in a group reaches both."""
    high, low = x.amax(dim, keepdim=True), x.amin(dim, keepdim=True)
    spread = (high - low) * (CLIP[bits] / (2**bits - 1))
    middle = (high + low) * 0.5
    return encode_scale(torch.maximum(spread, middle.abs() * floor)), middle


def _round(x: Tensor, minimum: Tensor, step: Tensor, bits: int) -> Tensor:
    codes = ((x - minimum) * step.reciprocal()).round_()
    return codes.nan_to_num_(nan=0.0).clamp_(0, 2**bits - 1).to(torch.uint8)
