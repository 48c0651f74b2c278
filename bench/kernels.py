"""`bench kernels`: how fast attention on codes is, against its rivals, and how near to the machine's bounds. Puts together cases,
implementations, timing, errors and roofline.

Each record has the keys of RECORD_KEYS and no others. Seconds are of one call for one layer; bytes_read is K
and V, or pages and residual; roofline_share is the bound of `bench/roofline.py` over the median; max_error is against float64.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import hack_kernels
from bench.kernel_cases import DTYPE, Case, make_blocks, make_cases, make_inputs
from bench.kernel_errors import closing_error, expect
from bench.kernel_impls import DEFAULT_NAMES, GIB, NAMES, Absent, Builder, Implementation, build_closing
from bench.kernel_timing import Clock, Spread, make_clock, time_interleaved
from bench.machine import describe_machine
from bench.progress import progress
from bench.roofline import Machine, Work, measure_machine
from hack_kernels.page_format import PageFormat
from packhorse.errors import ConfigError

RECORD_KEYS = (
    "device", "op", "impl", "format", "context", "batch", "heads", "kv_heads", "head_dim", "threads",
    "median_seconds", "p20_seconds", "p80_seconds", "bytes_read", "roofline_share", "max_error",
)  # fmt: skip
OPS = ("decode", "close_pages", "prefill")
DEVICES = ("cpu", "cuda")
CACHES = ("cold", "warm")
DEFAULT_CONTEXTS = (1024, 4096, 16384, 65536, 131072)
MAX_CASE_BYTES = {"cpu": 4 * GIB, "cuda": 32 * GIB}
BUDGET_SECONDS = 1.0


@dataclass(frozen=True)
class KernelOptions:
    """The options of one comparison, as the command line names them. Raises ConfigError naming what is wrong."""

    device: str = "cpu"
    format: tuple[str, ...] = ("k2v2",)
    context: tuple[int, ...] = DEFAULT_CONTEXTS
    batch: tuple[int, ...] = (1,)
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    chunk: int = 512
    threads: int | None = None
    op: tuple[str, ...] = ("decode", "close_pages")
    impl: tuple[str, ...] = DEFAULT_NAMES
    repeats: int = 15
    caches: str = "cold"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("device", DEVICES), ("op", OPS), ("impl", NAMES), ("caches", CACHES)):
            _check_names(name, getattr(self, name), allowed)
        for name in ("context", "batch", "heads", "kv_heads", "head_dim", "chunk", "threads", "repeats"):
            _check_positive(name, getattr(self, name))
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}", param="heads")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device=cuda: torch sees no NVIDIA GPU", param="device")
        for case in self.cases():
            _check_case(case, self.device)

    def cases(self) -> list[Case]:
        shape = {"heads": self.heads, "kv_heads": self.kv_heads, "head_dim": self.head_dim, "chunk": self.chunk}
        for name in self.format:
            try:
                PageFormat.parse(name, self.head_dim, DTYPE)
            except ValueError as error:
                param = "head_dim" if "head_dim" in str(error) else "format"
                raise ConfigError(
                    f"{param}={name if param == 'format' else self.head_dim}: {error}", param=param
                ) from error
        return list(make_cases(self.op, self.format, self.context, self.batch, **shape))


def _check_names(option: str, values: str | tuple[str, ...], allowed: tuple[str, ...]) -> None:
    for value in (values,) if isinstance(values, str) else values:
        if value not in allowed:
            raise ConfigError(f"{option}={value} is not one of {', '.join(allowed)}", param=option)


def _check_positive(option: str, values: int | tuple[int, ...] | None) -> None:
    for value in values if isinstance(values, tuple) else () if values is None else (values,):
        if value < 1:
            raise ConfigError(f"{option}={value} must be at least 1", param=option)


def _check_case(case: Case, device: str) -> None:
    if case.pages_per_sequence < 1:
        least = case.fmt.sink_tokens + case.fmt.page_tokens + (case.op == "decode")
        raise ConfigError(f"context={case.context} holds no whole page: give at least {least}", param="context")
    tokens = case.batch * case.pages_per_sequence * case.fmt.page_tokens
    blocks = 2 * tokens * case.kv_heads * case.head_dim * DTYPE.itemsize if case.op == "close_pages" else 0
    size = case.num_slots * case.kv_heads * case.fmt.page_bytes + blocks
    if size > MAX_CASE_BYTES[device]:
        raise ConfigError(
            f"context={case.context}, batch={case.batch}: {case.op} needs {size / GIB:.1f} GiB for {case.format} pages, more "
            f"than the {MAX_CASE_BYTES[device] // GIB} GiB allowed here",
            param="context",
        )


def run_kernels(options: KernelOptions, clock: Clock | None = None) -> dict[str, Any]:
    """Measures every case. Returns records, absent implementations, notes on variants, rates and the machine. `clock` is for tests."""
    before = torch.get_num_threads()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        return _run(options, clock)
    finally:
        torch.set_num_threads(before)


def _run(options: KernelOptions, clock: Clock | None) -> dict[str, Any]:
    start, clock = measure_machine(options.device), clock or make_clock(options.device, options.caches)
    cases = options.cases()
    measured: list[Measured] = []
    absent: list[dict[str, Any]] = []
    with progress("cases", len(cases)) as view, torch.inference_mode():
        for case in cases:
            built, error_of = (_closing if case.op == "close_pages" else _attention)(case, options)
            measured += _measure(case, [x for x in built if isinstance(x, Implementation)], error_of, options, clock)
            absent += [_place(case) | {"impl": x.name, "reason": x.reason} for x in built if isinstance(x, Absent)]
            view.advance(f"{case.op} {case.format} {case.context}x{case.batch}")
    machine = start.best(measure_machine(options.device))
    backend = hack_kernels.choose(options.device)
    return {
        "records": [_record(x, options.device, machine) for x in measured],
        "absent": absent,
        "notes": [_place(x.case) | {"impl": x.name, "note": x.note} for x in measured],
        "copy_bytes_per_second": machine.copy_bytes_per_second,
        "multiply_adds_per_second": machine.rates,
        "int8_source": machine.int8_source,
        "backend": {"name": backend.name, "reason": backend.reason},
        "machine": describe_machine() | _device(options.device) | {"load_average": _load_average()},
        "seed": options.seed,
        "caches": options.caches,
    }


@dataclass(frozen=True)
class Measured:
    """One implementation on one case; what it holds of the implementation is no tensor, so that the case's memory goes."""

    case: Case
    name: str
    note: str
    work: Work
    times: Spread
    max_error: float


def _measure(
    case: Case,
    found: list[Implementation],
    error_of: Callable[[Implementation], float],
    options: KernelOptions,
    clock: Clock,
) -> list[Measured]:
    errors = {x.name: error_of(x) for x in found}  # also the warm-up
    times = time_interleaved({x.name: x.run for x in found}, clock, options.repeats, options.seed, BUDGET_SECONDS)
    return [Measured(case, x.name, x.note, x.work, times[x.name], errors[x.name]) for x in found]


def _record(x: Measured, device: str, machine: Machine) -> dict[str, Any]:
    record = {
        "device": device,
        "impl": x.name,
        **_place(x.case),
        "threads": torch.get_num_threads(),
        "median_seconds": x.times.median,
        "p20_seconds": x.times.p20,
        "p80_seconds": x.times.p80,
        "bytes_read": x.work.bytes_read,
        "roofline_share": machine.bound_seconds(x.work) / x.times.median,
        "max_error": x.max_error,
    }
    return {key: record[key] for key in RECORD_KEYS}


def _attention(
    case: Case, options: KernelOptions
) -> tuple[list[Implementation | Absent], Callable[[Implementation], float]]:
    inputs = make_inputs(case, options.device, options.seed)
    expected = expect(inputs, options.seed)
    builder = Builder(inputs, options.device)
    built = [builder.build(name) for name in options.impl]
    return built, lambda x: expected.max_error(case, x.run())


def _closing(
    case: Case, options: KernelOptions
) -> tuple[list[Implementation | Absent], Callable[[Implementation], float]]:
    k, v = make_blocks(case, options.device, options.seed)
    built = [build_closing(name, case, k, v, options.device) for name in options.impl]
    return built, lambda x: closing_error(case.fmt, k, v, x.run())


def _place(case: Case) -> dict[str, Any]:
    return {
        "op": case.op,
        "format": case.format,
        "context": case.context,
        "batch": case.batch,
        "heads": case.heads,
        "kv_heads": case.kv_heads,
        "head_dim": case.head_dim,
    }


def _device(device: str) -> dict[str, Any]:
    name = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    return {"threads": torch.get_num_threads(), "torch": torch.__version__, **name}


def _load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
