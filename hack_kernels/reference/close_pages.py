"""Quantize blocks of K and V into pages, and back: the specification. Knows nothing of pools or sequences.

K is grouped per channel over the page's tokens, V per token over `group_channels` channels. In each group

    min   = the group's minimum, rounded down to bf16
    scale = (maximum - min) / (2**bits - 1), rounded up to bf16; 1 where that is below the smallest normal number
    code  = (x - min) / scale, rounded to the nearest (ties to even), in float32

Rounding the minimum down and the scale up keeps every value inside [min, min + (2**bits - 1) * scale], so no code is ever
clipped and |x - (scale * code + min)| <= scale / 2 up to float32 rounding. Rounding to nearest would leave values outside:
by up to |min| / 256, which at 8 bits can be many steps. A constant group whose value bf16 holds has scale 1, code 0, and is exact.

The bytes depend on the values alone: -0 counts as 0, padding is 0. A NaN or infinity makes its group's scale or minimum
non-finite, with code 0 wherever no number results, so the group opens as non-finite and attention to it yields NaN for the sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hack_kernels.page_format import PageFormat

from .codes import pack_codes, unpack_codes

SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


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
    k_codes = unpack_codes(fmt.view(pages, "k_codes"), fmt.k_bits).float()
    k = k_codes * fmt.view(pages, "k_scale").float().unsqueeze(-2) + fmt.view(pages, "k_min").float().unsqueeze(-2)
    v_codes = torch.unflatten(unpack_codes(fmt.view(pages, "v_codes"), fmt.v_bits).float(), -1, (fmt.v_groups, -1))
    v = v_codes * fmt.view(pages, "v_scale").float().unsqueeze(-1) + fmt.view(pages, "v_min").float().unsqueeze(-1)
    return k, v.flatten(-2)


def _quantize_k(k: Tensor, bits: int) -> dict[str, Tensor]:
    codes, scale, minimum = _quantize(k, bits, dim=-2)  # scale: [..., 1, head_dim]
    return {"k_codes": pack_codes(codes, bits), "k_scale": scale.squeeze(-2), "k_min": minimum.squeeze(-2)}


def _quantize_v(fmt: PageFormat, v: Tensor, bits: int) -> dict[str, Tensor]:
    codes, scale, minimum = _quantize(
        torch.unflatten(v, -1, (fmt.v_groups, -1)), bits, dim=-1
    )  # scale: [..., tokens, groups, 1]
    return {
        "v_codes": pack_codes(codes.flatten(-2), bits),
        "v_scale": scale.squeeze(-1),
        "v_min": minimum.squeeze(-1),
    }


def _quantize(x: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """float32 x -> uint8 codes of x's shape, bf16 scale and minimum with size 1 at `dim`, the grouped dimension."""
    levels = 2**bits - 1
    minimum = _round_bf16(x.amin(dim, keepdim=True) + 0.0, -torch.inf)  # + 0.0 turns -0 into 0
    scale = _round_bf16((x.amax(dim, keepdim=True) - minimum.float()) / levels, torch.inf)
    scale = scale.masked_fill(scale < SMALLEST_NORMAL, 1.0)
    codes = ((x - minimum.float()) / scale.float()).round_().nan_to_num_(nan=0.0).clamp_(0, levels)
    return codes.to(torch.uint8), scale, minimum


def _round_bf16(x: Tensor, towards: float) -> Tensor:
    """The bf16 number nearest to float32 `x` on the side of `towards` (an infinity)."""
    nearest = x.to(torch.bfloat16)
    missed = nearest.float() > x if towards < 0 else nearest.float() < x
    return torch.where(missed, torch.nextafter(nearest, torch.full_like(nearest, towards)), nearest)
