"""Both ways through every helper of hack_kernels/triton/packed.py, on all bytes and many floats, bit for bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hack_kernels.triton.packed import (
    code_field,
    code_field_in_place,
    code_halves_in_place,
    larger_halves,
    multiply_halves,
    multiply_halves_once,
    offset_halves,
    quantize_halves,
    reciprocal,
    scale_halves,
    to_halves,
)


@triton.jit
def apply_to_bytes(x, out, HELPER: tl.constexpr, BITS: tl.constexpr, FIELD: tl.constexpr, PTX: tl.constexpr):
    at = tl.arange(0, 256)
    codes = tl.load(x + at)
    if HELPER == "code_field":
        result = code_field(codes, BITS, FIELD, PTX)
    elif HELPER == "code_field_in_place":
        result = code_field_in_place(codes, BITS, FIELD, PTX)
    elif HELPER == "code_halves_in_place":
        result = code_halves_in_place(codes, BITS, FIELD, PTX)
    elif HELPER == "scale_halves":
        result = scale_halves(codes, PTX)
    else:
        base = ((at // 16 % 8).to(tl.float32) * 0.125 - 9.0).to(tl.float16)
        result = offset_halves(codes.to(tl.int8, bitcast=True), (at * 0.25).to(tl.float16), base, PTX)
    tl.store(out + at, result)


@triton.jit
def apply_to_floats(x, y, out, HELPER: tl.constexpr, PTX: tl.constexpr):
    at = tl.arange(0, 1024)
    a, b = tl.load(x + at), tl.load(y + at)
    if HELPER == "to_halves":
        result = to_halves(a, PTX)
    elif HELPER == "reciprocal":
        result = reciprocal(a, PTX)
    elif HELPER == "multiply_halves":
        result = multiply_halves(a.to(tl.float16), b.to(tl.float16), PTX)
    elif HELPER == "multiply_halves_once":
        result = multiply_halves_once(a.to(tl.float16), b.to(tl.float16), PTX)
    elif HELPER == "larger_halves":
        result = larger_halves(a.to(tl.float16), b.to(tl.float16), PTX)
    else:
        result = quantize_halves((a * 4).to(tl.float16), tl.full(a.shape, 9.5, tl.float16), PTX)
    tl.store(out + at, result)


def check_helpers() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    for helper, dtype in (
        ("code_field", torch.int8),
        ("code_field_in_place", torch.int8),
        ("code_halves_in_place", torch.float16),
    ):
        for bits in (2, 4, 8):
            for field in range(8 // bits):
                both = [_on_bytes(codes, dtype, helper, bits, field, way) for way in (False, True)]
                assert torch.equal(*both), f"{helper} {bits} {field}"
    for helper in ("scale_halves", "offset_halves"):
        plain, ptx = (_on_bytes(codes, torch.float16, helper, 8, 0, way) for way in (False, True))
        assert torch.equal(plain.view(torch.int16), ptx.view(torch.int16)), helper
    x, y = torch.randn(2, 1024, generator=torch.Generator().manual_seed(0))
    for helper, dtype in (
        ("to_halves", torch.float16),
        ("reciprocal", torch.float32),
        ("multiply_halves", torch.float16),
        ("multiply_halves_once", torch.float16),
        ("larger_halves", torch.float16),
        ("quantize_halves", torch.int8),
    ):
        both = []
        for way in (False, True):
            out = torch.empty(1024, dtype=dtype)
            apply_to_floats[(1,)](x.clamp(-3, 3), y, out, helper, way)
            both.append(out)
        assert torch.equal(*both), helper


def _on_bytes(codes: Tensor, dtype: torch.dtype, helper: str, bits: int, field: int, way: bool) -> Tensor:
    out = torch.empty(256, dtype=dtype)
    apply_to_bytes[(1,)](codes, out, helper, bits, field, way)
    return out
