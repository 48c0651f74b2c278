"""Inline PTX for triton's interpreter, which has none: the few instructions that our kernels use, on numpy arrays.

`install` makes the interpreter run them, and bf16 products too, so that the GPU's way through a kernel is computed on the CPU. What it
cannot show is which elements the compiler packs into a register (any, by contract), and the last bit of an approximate reciprocal.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def _halves(x: np.ndarray) -> np.ndarray:
    """uint32 [n] -> float16 [n, 2]."""
    return x.view(np.float16).reshape(-1, 2)


def _words(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float16).view(np.uint32).reshape(-1)


def _prmt(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    octet = np.stack([np.broadcast_to(x, a.shape).astype(np.uint32).view(np.uint8).reshape(-1, 4) for x in (a, b)], 1)
    picks = [(int(selector.flat[0]) >> (4 * i)) & 0xF for i in range(4)]
    assert max(picks) < 8, "sign replication is not emulated"
    return np.ascontiguousarray(octet.reshape(-1, 8)[:, picks]).view(np.uint32).reshape(-1)


def _lop3(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    result = np.zeros_like(a)
    for case in range(8):
        if int(table.flat[0]) >> case & 1:
            result |= (a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c)
    return result


def _fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Exact in float64 (11 + 11 bits, and a sum near them), so rounded once."""
    x, y, z = (_halves(v).astype(np.float64) for v in (a, b, c))
    return _words((x * y + z).astype(np.float16))


OPERATIONS = {
    "mov.b32": lambda a: a,
    "mov.b64": lambda a: a,  # a register's two words lie one after the other
    "and.b32": lambda a, b: a & b,
    "xor.b32": lambda a, b: a ^ b,
    "shr.b32": lambda a, b: a >> b,
    "prmt.b32": _prmt,
    "lop3.b32": _lop3,
    "mul.rn.f16x2": lambda a, b: _words(_halves(a) * _halves(b)),
    "add.rn.f16x2": lambda a, b: _words(_halves(a) + _halves(b)),
    "fma.rn.f16x2": _fma,
    "abs.f16x2": lambda a: a & np.uint32(0x7FFF7FFF),
    "max.f16x2": lambda a, b: _words(np.fmax(_halves(a), _halves(b))),
    "cvt.rn.f16x2.f32": lambda high, low: _words(np.stack([low.view(np.float32), high.view(np.float32)], 1)),
    "rcp.approx.ftz.f32": lambda a: (np.float32(1) / a.view(np.float32)).view(np.uint32),
}


def run(asm: str, outputs: int, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The registers $0.. of one asm block, uint32 [n] each, from those of its inputs."""
    registers: dict[str, np.ndarray] = {f"${outputs + i}": x for i, x in enumerate(inputs)}
    count = inputs[0].shape[0]
    for statement in re.split(r";\s*", asm.strip().strip("{}")):
        if not statement or statement.startswith(".reg"):
            continue
        name, _, rest = statement.strip().partition(" ")
        target, *sources = (x.strip() for x in rest.split(","))
        values = [registers[x] if x in registers else np.full(count, int(x, 0), np.uint32) for x in sources]
        registers[target] = OPERATIONS[name](*values)
    return [registers[f"${i}"] for i in range(outputs)]


class _Results:
    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def get_result(self, i: int) -> Any:
        return self._handles[i]


def _inline_asm(
    self: Any, asm: str, constraints: str, values: list[Any], types: list[Any], pure: bool, pack: int
) -> _Results:
    outputs = constraints.count("=")
    inputs = [register for value in values for register in _to_registers(value.data, pack)]
    assert constraints.count(",") + 1 == outputs + len(inputs), constraints
    with np.errstate(all="ignore"):
        results = run(asm, outputs, inputs)
    dtype = types[0].scalar
    kind = interpreter._get_np_dtype(dtype)
    flat = np.stack(results, 1) if kind.itemsize < 4 else results[0]
    data = np.ascontiguousarray(flat).reshape(-1).view(kind).reshape(values[0].data.shape)
    return _Results([interpreter.TensorHandle(data, dtype)])


def _to_registers(data: np.ndarray, pack: int) -> list[np.ndarray]:
    """Elements, `pack` at a time -> the registers that hold them: several to one where they are short."""
    flat = np.ascontiguousarray(data).reshape(-1, pack)
    words = flat.view(np.uint32) if flat.dtype.itemsize < 4 else flat.view(np.uint32).reshape(-1, pack)
    return [np.ascontiguousarray(words[:, i]) for i in range(words.shape[1])]


def install() -> None:
    builder = interpreter.InterpreterBuilder
    builder.create_inline_asm = _inline_asm
    plain_dot = builder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return plain_dot(self, a, b, *rest)

    builder.create_dot = create_dot
