"""Jitted elementwise arithmetic on bytes and float16 numbers, several to a 32-bit register.

Every helper has two ways, chosen by the constexpr PTX: inline PTX that works on whole registers for the GPU, and plain operations for
triton's interpreter, which has no inline assembly; the plain way is the specification of the other. Both compile. Which elements
share a register is the compiler's choice, so each helper is elementwise and right for any. Knows nothing of pages.
"""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"
# ruff: noqa: RET505

from __future__ import annotations

import triton
import triton.language as tl

FIRST_SCALE = tl.constexpr((127 - 20) << 23)  # the bits of E5M3's least, as float32
_ROUND = tl.constexpr(
    1536.0
)  # float16 numbers near it are 1 apart: adding it leaves the nearest integer in the low byte


@triton.jit
def code_field(codes, BITS: tl.constexpr, FIELD: tl.constexpr, PTX: tl.constexpr):
    """uint8 bytes of packed codes -> int8, the code in bits FIELD * BITS and on; of 8-bit codes, code - 128."""
    SHIFT: tl.constexpr = FIELD * BITS
    if BITS == 8:
        if PTX:
            return tl.inline_asm_elementwise(
                "xor.b32 $0, $1, 0x80808080;", "=r,r", [codes], dtype=tl.int8, is_pure=True, pack=4
            )
        return (codes ^ 0x80).to(tl.int8, bitcast=True)
    if not PTX:
        return ((codes >> SHIFT) & (2**BITS - 1)).to(tl.int8)
    if BITS == 4:
        if SHIFT == 0:
            return _and(codes, "and.b32 $0, $1, 0x0F0F0F0F;")
        return _and(codes, "shr.b32 $0, $1, 4; and.b32 $0, $0, 0x0F0F0F0F;")
    if SHIFT == 0:
        return _and(codes, "and.b32 $0, $1, 0x03030303;")
    if SHIFT == 2:
        return _and(codes, "shr.b32 $0, $1, 2; and.b32 $0, $0, 0x03030303;")
    if SHIFT == 4:
        return _and(codes, "shr.b32 $0, $1, 4; and.b32 $0, $0, 0x03030303;")
    return _and(codes, "shr.b32 $0, $1, 6; and.b32 $0, $0, 0x03030303;")


@triton.jit
def code_field_in_place(codes, BITS: tl.constexpr, FIELD: tl.constexpr, PTX: tl.constexpr):
    """uint8 bytes of packed codes -> int8, the code of a field times 2**(FIELD * BITS), in one instruction for four.

    In the byte's top field the code less 2**(BITS - 1), as its highest bit, inverted, is the sign.
    """
    MASK: tl.constexpr = (2**BITS - 1) * 2 ** (FIELD * BITS)
    if not PTX:
        if MASK >= 0x80:
            return ((codes & MASK) ^ 0x80).to(tl.int8, bitcast=True)
        return (codes & MASK).to(tl.int8)
    if MASK == 0x03:
        return _and(codes, "and.b32 $0, $1, 0x03030303;")
    if MASK == 0x0C:
        return _and(codes, "and.b32 $0, $1, 0x0C0C0C0C;")
    if MASK == 0x30:
        return _and(codes, "and.b32 $0, $1, 0x30303030;")
    if MASK == 0x0F:
        return _and(codes, "and.b32 $0, $1, 0x0F0F0F0F;")
    if MASK == 0xC0:
        return _and(codes, "lop3.b32 $0, $1, 0xC0C0C0C0, 0x80808080, 0x6A;")
    if MASK == 0xF0:
        return _and(codes, "lop3.b32 $0, $1, 0xF0F0F0F0, 0x80808080, 0x6A;")
    return _and(codes, "xor.b32 $0, $1, 0x80808080;")


@triton.jit
def _and(codes, ASM: tl.constexpr):
    return tl.inline_asm_elementwise(ASM, "=&r,r", [codes], dtype=tl.int8, is_pure=True, pack=4)


@triton.jit
def code_halves_in_place(codes, BITS: tl.constexpr, FIELD: tl.constexpr, PTX: tl.constexpr):
    """uint8 bytes of packed codes -> float16, 1024 + the code in bits FIELD * BITS and on times 2**(FIELD * BITS), exact."""
    MASK: tl.constexpr = (2**BITS - 1) * 2 ** (FIELD * BITS)
    if not PTX:
        return (codes & MASK).to(tl.float16) + 1024.0
    if MASK == 0x03:
        return _masked_halves(codes, "0x00030003")
    elif MASK == 0x0C:
        return _masked_halves(codes, "0x000C000C")
    elif MASK == 0x30:
        return _masked_halves(codes, "0x00300030")
    elif MASK == 0xC0:
        return _masked_halves(codes, "0x00C000C0")
    elif MASK == 0x0F:
        return _masked_halves(codes, "0x000F000F")
    elif MASK == 0xF0:
        return _masked_halves(codes, "0x00F000F0")
    else:
        return _masked_halves(codes, "0x00FF00FF")


@triton.jit
def _masked_halves(codes, MASK: tl.constexpr):
    """Bytes of each pair of halves beside the exponent of 1024, all but MASK of them cleared."""
    return tl.inline_asm_elementwise(
        "{.reg .b32 a, b; prmt.b32 a, $2, 0, 0x4140; prmt.b32 b, $2, 0, 0x4342;"
        " lop3.b32 $0, a, " + MASK + ", 0x64006400, 0xEA; lop3.b32 $1, b, " + MASK + ", 0x64006400, 0xEA;}",
        "=&r,=&r,r",
        [codes],
        dtype=tl.float16,
        is_pure=True,
        pack=4,
    )


@triton.jit
def scale_halves(codes, PTX: tl.constexpr):
    """uint8 E5M3 codes -> float16, 2**5 times the scale. Below 8 the leading 1 is lost (2**-20); 248 (2048) and up overflow."""
    if PTX:
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $2, 0, 0x1404; prmt.b32 $1, $2, 0, 0x3424; shr.b32 $0, $0, 1; shr.b32 $1, $1, 1;",
            "=&r,=&r,r",
            [codes],
            dtype=tl.float16,
            is_pure=False,
            pack=4,
        )
    return (codes.to(tl.uint16) << 7).to(tl.float16, bitcast=True)


@triton.jit
def offset_halves(codes, scale, base, PTX: tl.constexpr):
    """int8 codes, float16 scale and base -> scale * (codes / 128 + 9 + base), the sum exact where it is a multiple of 1 / 128 below 8."""
    if PTX:
        return tl.inline_asm_elementwise(
            "{.reg .b32 a, m, n; xor.b32 a, $2, 0x80808080; mov.b32 m, 0x64646464; mov.b32 n, 0x20002000;"
            " prmt.b32 $0, a, m, 0x4140; prmt.b32 $1, a, m, 0x4342; fma.rn.f16x2 $0, $0, n, $5;"
            " fma.rn.f16x2 $1, $1, n, $6; mul.rn.f16x2 $0, $0, $3; mul.rn.f16x2 $1, $1, $4;}",
            "=&r,=&r,r,r,r,r,r",
            [codes, scale, base],
            dtype=tl.float16,
            is_pure=False,
            pack=4,
        )
    return (codes.to(tl.float32) * 0.0078125 + (base.to(tl.float32) + 9.0)).to(tl.float16) * scale


@triton.jit
def to_halves(x, PTX: tl.constexpr):
    """float32 -> float16."""
    if PTX:
        return tl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=tl.float16, is_pure=True, pack=2
        )
    return x.to(tl.float16)


@triton.jit
def multiply_halves(x, y, PTX: tl.constexpr):
    if PTX:
        return tl.inline_asm_elementwise(
            "mul.rn.f16x2 $0, $1, $2;", "=r,r,r", [x, y], dtype=tl.float16, is_pure=True, pack=2
        )
    return x * y


@triton.jit
def multiply_halves_once(x, y, PTX: tl.constexpr):
    """As multiply_halves, where x and y lie: the compiler may not repeat it in every lane that wants the product."""
    if PTX:
        return tl.inline_asm_elementwise(
            "mul.rn.f16x2 $0, $1, $2;", "=r,r,r", [x, y], dtype=tl.float16, is_pure=False, pack=2
        )
    return x * y


@triton.jit
def larger_halves(x, y, PTX: tl.constexpr):
    """The larger magnitude of each pair of float16 numbers."""
    if PTX:
        return tl.inline_asm_elementwise(
            "{.reg .b32 a, b; abs.f16x2 a, $1; abs.f16x2 b, $2; max.f16x2 $0, a, b;}",
            "=r,r,r",
            [x, y],
            dtype=tl.float16,
            is_pure=True,
            pack=2,
        )
    return tl.maximum(tl.abs(x), tl.abs(y))


@triton.jit
def quantize_halves(x, factor, PTX: tl.constexpr):
    """float16 x * factor, within -127.4..127.4, to the nearest int8 (ties to even)."""
    if PTX:
        return tl.inline_asm_elementwise(
            "{.reg .b32 m, a, b; mov.b32 m, 0x66006600; fma.rn.f16x2 a, $1, $3, m; fma.rn.f16x2 b, $2, $4, m;"
            " prmt.b32 $0, a, b, 0x6420;}",
            "=r,r,r,r,r",
            [x, factor],
            dtype=tl.int8,
            is_pure=True,
            pack=4,
        )
    return (
        ((x.to(tl.float32) * factor.to(tl.float32) + 12582912.0).to(tl.int32, bitcast=True) & 0xFF)
        .to(tl.uint8)
        .to(tl.int8, bitcast=True)
    )


@triton.jit
def reciprocal(x, PTX: tl.constexpr):
    """1 / x of a normal float32, on the GPU to about a unit in the last place."""
    if PTX:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 1.0 / x


@triton.jit
def anchor(pointers, MULTIPLE: tl.constexpr, PTX: tl.constexpr):
    """Pointers to bytes, multiples of MULTIPLE, of which the compiler knows nothing else: what is added is a load's immediate offset.

    Otherwise it makes `or` of additions to lanes' offsets, which takes two instructions and a register for every load.
    """
    if PTX:
        numbers = tl.inline_asm_elementwise(
            "mov.b64 $0, $1;", "=l,l", [pointers.to(tl.int64)], dtype=tl.int64, is_pure=True, pack=1
        )
        pointers = numbers.to(tl.pointer_type(tl.uint8))
    return tl.multiple_of(pointers, [MULTIPLE, MULTIPLE])
