"""The machine's bounds, measured in this process by short loops: copy bandwidth and multiply-adds per second. Knows no kernel.

    bound = the larger of bytes / bandwidth and multiply-adds / rate of the arithmetic that does them
    share = bound / measured time

Bandwidth counts bytes read and written of a torch copy between buffers several times the last-level cache: the highest rate
at which this machine moves bytes with the given threads that plain torch shows.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import hack_kernels
from hack_kernels.cpu.library import current_isa, integer_dots

DEFAULT_CACHE_BYTES = 32 * 1024 * 1024
BUFFERS_PER_CACHE = 8
MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
DOT_ROUNDS = 100_000
LEAST_REPEATS = 5
SECONDS_PER_LOOP = 0.4


@dataclass(frozen=True)
class Work:
    """What one call has to do: `arithmetic` is a key of Machine.rates."""

    bytes_read: int
    bytes_written: int
    multiply_adds: int
    arithmetic: str


@dataclass(frozen=True)
class Machine:
    """`rates`: multiply-adds per second by arithmetic, int8, bfloat16 and float32; None where it could not be measured."""

    copy_bytes_per_second: float
    rates: dict[str, float | None]
    int8_source: str

    def bound_seconds(self, work: Work) -> float:
        rate = self.rates.get(work.arithmetic)
        moving = (work.bytes_read + work.bytes_written) / self.copy_bytes_per_second
        return max(moving, work.multiply_adds / rate if rate else 0.0)

    def best(self, other: Machine) -> Machine:
        """The higher of each rate: it is a bound that is looked for, and another process may have disturbed one measurement."""
        rates = {name: max(rate or 0.0, other.rates[name] or 0.0) or None for name, rate in self.rates.items()}
        copy = max(self.copy_bytes_per_second, other.copy_bytes_per_second)
        return Machine(copy, rates, self.int8_source if self.rates["int8"] else other.int8_source)


def measure_machine(device: str) -> Machine:
    """About two seconds, with torch's current number of threads."""
    int8, source = _int8_rate(device)
    rates = {
        "int8": int8,
        "bfloat16": _matmul_rate(device, torch.bfloat16),
        "float32": _matmul_rate(device, torch.float32),
    }
    return Machine(_copy_rate(device), rates, source)


def cache_bytes(device: str) -> int:
    """The last-level cache's size: the system's word on it, else DEFAULT_CACHE_BYTES."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [_parse_size(path) for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(sizes, default=0) or DEFAULT_CACHE_BYTES


def _parse_size(path: Path) -> int:
    try:
        match = re.fullmatch(r"(\d+)([KM]?)", path.read_text(encoding="ascii").strip())
    except OSError:
        return 0
    return int(match[1]) * {"": 1, "K": 1024, "M": 1024 * 1024}[match[2]] if match else 0


def _copy_rate(device: str) -> float:
    size = min(BUFFERS_PER_CACHE * cache_bytes(device), 1 << 30)
    source = torch.ones(size, dtype=torch.uint8, device=device)  # written: an untouched buffer is one page of zeros
    target = torch.ones_like(source)
    return 2 * size / _best_seconds(lambda: target.copy_(source), device)


def _matmul_rate(device: str, dtype: torch.dtype) -> float:
    side = MATRIX_SIDE[device]
    a = torch.ones(side, side, dtype=dtype, device=device)
    return float(side**3 / _best_seconds(lambda: a @ a, device))


def _int8_rate(device: str) -> tuple[float | None, str]:
    """The higher of torch's rate, which may use matrix units, and of the native kernels' own dot products."""
    torch_rate, source = _torch_int8_rate(device)
    if device == "cpu" and hack_kernels.choose("cpu").name == "cpu" and (own := _own_int8_rate()) > (torch_rate or 0.0):
        return own, f"the dot products of {current_isa()}"
    return torch_rate, source


def _torch_int8_rate(device: str) -> tuple[float | None, str]:
    side = MATRIX_SIDE[device]
    a = torch.ones(side, side, dtype=torch.int8, device=device)
    try:
        seconds = _best_seconds(lambda: torch._int_mm(a, a), device)
    except (RuntimeError, AttributeError) as error:
        return None, f"unavailable: {str(error).splitlines()[0]}"
    return side**3 / seconds, "torch's int8 matrix product"


def _own_int8_rate() -> float:
    return integer_dots(DOT_ROUNDS) / _best_seconds(lambda: integer_dots(DOT_ROUNDS), "cpu")


def _best_seconds(run: Callable[[], object], device: str) -> float:
    """The fastest of a few, since it is a bound that is looked for."""
    run()
    end = time.perf_counter() + SECONDS_PER_LOOP
    times = [_seconds(run, device) for _ in range(LEAST_REPEATS)]
    while time.perf_counter() < end:
        times.append(_seconds(run, device))
    return min(times)


def _seconds(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
