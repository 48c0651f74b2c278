"""The compiled kernels as Python sees them: the library, the instruction set in use, and the structs of native/abi.h.

torch is imported first, so that the library finds torch's OpenMP loaded and shares its threads. Knows nothing of operations.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_char_p, c_float, c_int64, c_void_p
from functools import lru_cache

import torch
from torch import Tensor

from hack_kernels.page_format import PAGE_TOKENS, PageFormat
from hack_kernels.reference.close_pages import CLIP, k_floor, v_floor

from . import build

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ISA_VARIABLE = "PACKHORSE_CPU_ISA"
MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 512
MAX_ROWS = 128


class Format(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in (
            "head_dim", "k_bits", "v_bits", "dtype", "group_channels", "sink_tokens", "residual_slots", "page_bytes",
            "k_codes", "k_scale", "k_min", "v_codes", "v_scale", "v_zero",
        )),
        *((name, c_float) for name in ("k_clip", "k_floor", "v_clip", "v_floor")),
    ]  # fmt: skip


class Run(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in ("isa", "threads", "dequant")]


class Pool(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("slot_stride", c_int64), ("head_stride", c_int64)]


class Residual(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        *((name, c_int64) for name in ("row_stride", "kv_stride", "head_stride", "slot_stride")),
    ]


class Decode(ctypes.Structure):
    _fields_ = [
        ("format", Format), ("run", Run), ("pool", Pool), ("residual", Residual),
        *((name, c_int64) for name in ("batch", "queries", "kv_heads", "group")),
        ("q", c_void_p), ("out", c_void_p),
        *((name, c_int64) for name in (
            "q_dtype", "q_batch_stride", "q_token_stride", "q_head_stride",
            "out_batch_stride", "out_token_stride", "out_head_stride",
        )),
        *((name, c_void_p) for name in ("page_table", "num_pages", "residual_rows", "residual_tokens")),
        *((name, c_int64) for name in ("page_table_stride", "max_pages", "num_slots", "num_rows")), ("scale", c_float),
    ]  # fmt: skip


class Prefill(ctypes.Structure):
    _fields_ = [
        ("format", Format), ("run", Run), ("pool", Pool),
        *((name, c_int64) for name in ("kv_heads", "group", "chunk", "tokens", "num_pages")),
        *((name, c_void_p) for name in ("q", "k", "v", "out", "slots")),
        *((name, c_int64) for name in (
            "q_dtype", "kv_dtype", "q_token_stride", "q_head_stride", "kv_head_stride", "kv_token_stride",
        )),
        ("scale", c_float),
    ]  # fmt: skip


class Close(ctypes.Structure):
    _fields_ = [
        ("format", Format), ("run", Run), ("pool", Pool),
        *((name, c_int64) for name in ("num_blocks", "kv_heads", "dtype")),
        ("k", c_void_p), ("v", c_void_p),
        *((f"{side}_{name}_stride", c_int64) for side in "kv" for name in ("block", "head", "token")),
        ("k_rows", c_void_p), ("slots", c_void_p),
    ]  # fmt: skip


class Append(ctypes.Structure):
    _fields_ = [
        ("format", Format), ("run", Run), ("residual", Residual),
        *((name, c_int64) for name in ("batch", "kv_heads", "dtype")),
        ("k", c_void_p), ("v", c_void_p),
        *((f"{side}_{name}_stride", c_int64) for side in "kv" for name in ("batch", "head")),
        ("residual_rows", c_void_p), ("num_tokens", c_void_p),
    ]  # fmt: skip


class Unavailable(Exception):
    """The native kernels cannot serve; the message is the reason, one clause for people."""


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """The library. Raises Unavailable where it is not built, was built from other sources, or does not load."""
    path = build.library_path()
    if not path.exists():
        advice = (
            "python -m hack_kernels.cpu.build builds them"
            if build.compiler()
            else "no compiler: g++ is not on the PATH"
        )
        raise Unavailable(f"the native kernels are not built ({advice})")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"the native kernels do not load: {error}") from None
    library.packhorse_sources.restype = library.packhorse_isa.restype = c_char_p
    library.packhorse_num_isas.restype = c_int64
    library.packhorse_isa.argtypes = [c_int64]
    built_from = library.packhorse_sources().decode()
    if build.sources() and built_from != build.source_digest():
        raise Unavailable(
            "the native kernels were built from other sources (python -m hack_kernels.cpu.build builds them anew)"
        )
    library.packhorse_integer_dots.restype = c_int64
    library.packhorse_decode.argtypes = [c_void_p] * 4
    return library


@lru_cache(maxsize=1)
def isas() -> tuple[str, ...]:
    """The instruction sets that this CPU can run, by their index in the library; "" for one that it cannot."""
    library = load()
    names = (library.packhorse_isa(i) for i in range(library.packhorse_num_isas()))
    return tuple(name.decode() if name else "" for name in names)


def current_isa() -> str:
    """The one in use: PACKHORSE_CPU_ISA where set, else the best. Raises ValueError for one that this CPU cannot run."""
    wanted = os.environ.get(ISA_VARIABLE)
    usable = [name for name in isas() if name]
    if not wanted:
        return usable[-1]
    if wanted not in usable:
        raise ValueError(f"{ISA_VARIABLE}={wanted!r} is not one of {', '.join(usable)}, which this CPU can run")
    return wanted


_isa: int | None = None


@contextmanager
def using_isa(name: str) -> Iterator[None]:
    """Inside, the kernels for instruction set `name` run, for tests and benchmarks. Not for threads."""
    global _isa
    before, _isa = _isa, isas().index(name)
    try:
        yield
    finally:
        _isa = before


def run_numbers() -> tuple[int, int]:
    """The instruction set's index and the number of threads."""
    global _isa
    if _isa is None:
        _isa = isas().index(current_isa())
    return _isa, torch.get_num_threads()


def run() -> Run:
    return Run(*run_numbers(), 0)


@lru_cache
def format_struct(fmt: PageFormat) -> Format:
    """Raises ValueError for a format that the native kernels do not have."""
    if fmt.page_tokens != PAGE_TOKENS:
        raise ValueError(f"fmt: the native kernels have page_tokens={PAGE_TOKENS}, not {fmt.page_tokens}")
    if not MIN_HEAD_DIM <= fmt.head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"fmt: the native kernels have head_dim {MIN_HEAD_DIM} to {MAX_HEAD_DIM}, not {fmt.head_dim}")
    start = {name: field.offset for name, field in fmt.fields.items()}
    sizes = (fmt.head_dim, fmt.k_bits or 0, fmt.v_bits or 0, DTYPES[fmt.dtype], fmt.group_channels, fmt.sink_tokens,
             fmt.residual_slots, fmt.page_bytes)  # fmt: skip
    if fmt.k_bits is None or fmt.v_bits is None:
        return Format(*sizes, start["k"], 0, 0, start["v"], 0, 0, 0.0, 0.0, 0.0, 0.0)
    names = ("k_codes", "k_scale", "k_min", "v_codes", "v_scale", "v_zero")
    clips = (CLIP[bits] / (2**bits - 1) for bits in (fmt.k_bits, fmt.v_bits))
    k_clip, v_clip = clips
    return Format(*sizes, *(start[name] for name in names), k_clip, k_floor(fmt.k_bits), v_clip, v_floor(fmt.v_bits))


def pool_struct(pages: Tensor) -> Pool:
    return Pool(pages.data_ptr(), pages.stride(0), pages.stride(1))


def residual_struct(residual: Tensor) -> Residual:
    return Residual(residual.data_ptr(), residual.stride(0), residual.stride(1), residual.stride(2), residual.stride(3))


def readable(x: Tensor) -> Tensor:
    """x, or a copy of it whose last dimension is contiguous."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def writable(name: str, x: Tensor) -> Tensor:
    """Raises ValueError naming a tensor that is written in place and whose last dimension is not contiguous."""
    if x.stride(-1) != 1 and x.numel():
        raise ValueError(f"{name} must be contiguous in its last dimension: strides are {list(x.stride())}")
    return x


def integer_dots(rounds: int) -> int:
    """Integer dot products as the kernels use them and nothing else, on torch's threads; returns their multiply-adds, which are in
    proportion to `rounds`. For the machine's bound."""
    return int(load().packhorse_integer_dots(*map(c_int64, (*run_numbers(), rounds))))


NO_MEMORY, BAD_VALUE = 1, 2


class BadValue(Exception):
    """An index or a count is out of its range. The caller, who has the names, says which."""


def call(function: str, arguments: ctypes.Structure, *addresses: int) -> None:
    """Raises MemoryError where the kernels could not allocate their scratch memory, BadValue where a value is out of range."""
    check_status(function, getattr(load(), function)(ctypes.byref(arguments), *map(c_void_p, addresses)))


def check_status(function: str, status: int) -> None:
    """Raises what `call` raises."""
    if status == BAD_VALUE:
        raise BadValue(function)
    if status:
        raise MemoryError(f"{function}: no memory for {torch.get_num_threads()} threads")
