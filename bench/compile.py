"""Offline report on the Triton kernels: each is compiled for GPUs that need not be there, and its machine code counted.

A record has the keys of RECORD_KEYS. registers and spill_bytes are of a thread, shared_bytes of a program; instructions_per_kv_value
are all instructions of the kernel's main loop (cold branches included), times 32 lanes and its warps, over the values of K and V that
an iteration attends; by_class splits them by the classes of bench/sass.py. Both are None and empty for kernels without a loop of tensor
instructions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.console import table_console
from bench.sass import count_classes, main_loop, usage
from bench.specimens import ARCHS, KERNELS, RAW_KERNELS, Specimen, compile_specimen, specimen
from hack_kernels.page_format import PageFormat
from packhorse.errors import ConfigError

RECORD_KEYS = (
    "kernel", "arch", "format", "gqa", "page_tokens", "registers", "spill_bytes", "shared_bytes",
    "instructions_per_kv_value", "by_class",
)  # fmt: skip
DEFAULT_FORMATS = ("k2v2", "k4v2", "k4v4", "k8v8", "raw")
DEFAULT_GQA = (4, 8)
MAX_GQA = 16
GRID_HEAD_DIMS, GRID_FORMATS, GRID_GQA = (64, 80, 96, 128, 256), ("k2v2", "k4v2", "k4v4", "k8v8"), (1, 4, 8, 16)
BASELINE = Path(__file__).with_name("sass_baseline.json")
_SHARED_BYTES = {"sm_80": 164 * 1024, "sm_90": 228 * 1024}  # of a processor
_REGISTERS, _WARPS, _PROGRAMS, _RESERVED_BYTES = 65536, 64, 32, 1024


def compile_report(
    archs: Sequence[str] = tuple(ARCHS),
    formats: Sequence[str] = DEFAULT_FORMATS,
    gqa: Sequence[int] = DEFAULT_GQA,
    head_dim: int = 128,
    kernels: Sequence[str] | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[dict[str, Any]]:
    """Records of every kernel (or those named), architecture, format and GQA ratio. Raises ConfigError naming what is unknown.

    `kernels` are names of KERNELS. Needs triton and no GPU, and TRITON_INTERPRET not set.
    """
    _check("compile", archs, tuple(ARCHS))
    _check("kernels", kernels or (), KERNELS)
    _check("gqa", gqa, range(1, MAX_GQA + 1))
    cases = [
        (kernel, arch, name, ratio)
        for kernel in kernels or KERNELS
        for arch in archs
        for name in formats
        for ratio in gqa
        if ratio == gqa[0] or kernel in ("decode_attention", "fused_dequant")
        if name != "raw" or kernel in RAW_KERNELS
    ]
    return [_record(kernel, arch, name, ratio, head_dim) for kernel, arch, name, ratio in progress(cases)]


def compile_grid(
    archs: Sequence[str] = tuple(ARCHS),
    head_dims: Sequence[int] = GRID_HEAD_DIMS,
    formats: Sequence[str] = GRID_FORMATS,
    gqa: Sequence[int] = GRID_GQA,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[dict[str, Any]]:
    """Records of the decode kernel in every shape that models have, with `head_dim` beside the keys of RECORD_KEYS."""
    cases = [(dim, name, arch, ratio) for dim in head_dims for name in formats for arch in archs for ratio in gqa]
    return [
        {"head_dim": dim} | _record("decode_attention", arch, name, ratio, dim)
        for dim, name, arch, ratio in progress(cases)
    ]


def _check(option: str, values: Sequence[Any], allowed: Sequence[Any]) -> None:
    for value in values:
        if value not in allowed:
            raise ConfigError(f"{option}={value} is not one of {', '.join(map(str, allowed))}", param=option)


def _record(kernel: str, arch: str, name: str, gqa: int, head_dim: int) -> dict[str, Any]:
    try:
        fmt = PageFormat.parse(name, head_dim, torch.bfloat16)
        made = specimen(kernel, fmt, gqa)
    except ValueError as error:
        raise ConfigError(f"format={name}, head_dim={head_dim}: {error}", param="format") from error
    cubin, shared_bytes = compile_specimen(made, arch)
    used = usage(cubin)
    total, by_class = _instructions(cubin, made)
    values = (kernel, arch, name, gqa, fmt.page_tokens, used.registers, used.spill_bytes, shared_bytes, total, by_class)
    return dict(zip(RECORD_KEYS, values, strict=True))


def _instructions(cubin: bytes, made: Specimen) -> tuple[float | None, dict[str, float]]:
    if not made.kv_values:
        return None, {}
    loop, lanes = main_loop(cubin), 32 * made.warps
    by_class = {name: round(n * lanes / made.kv_values, 3) for name, n in count_classes(loop).items()}
    return round(len(loop) * lanes / made.kv_values, 3), by_class


def occupancy(record: dict[str, Any]) -> float:
    """The largest share of a processor's warps that registers and shared memory let be resident at once."""
    warps = specimen(record["kernel"], PageFormat.parse(record["format"], 128, torch.bfloat16), record["gqa"]).warps
    registers = -(-record["registers"] // 8) * 8 * 32 * warps
    shared = record["shared_bytes"] + _RESERVED_BYTES
    programs = min(_REGISTERS // registers, _SHARED_BYTES[record["arch"]] // shared, _PROGRAMS, _WARPS // warps)
    return float(programs * warps / _WARPS)


def print_compiled(records: Sequence[dict[str, Any]], console: Console) -> None:
    classes = list(dict.fromkeys(name for record in records for name in record["by_class"]))
    table = Table(title="Kernels, compiled offline; instructions per KV value of the main loop")
    for name in ("kernel", "arch", "format", "GQA", "registers", "spilled B", "shared B", "occupancy", "all", *classes):
        table.add_column(name, justify="left" if name in ("kernel", "arch", "format") else "right")
    for record in records:
        total = record["instructions_per_kv_value"]
        counts = [f"{record['by_class'][name]:.2f}" if record["by_class"] else "-" for name in classes]
        cells = [record[key] for key in ("kernel", "arch", "format", "gqa", "registers", "spill_bytes", "shared_bytes")]
        all_of_it = "-" if total is None else f"{total:.2f}"
        table.add_row(*map(str, cells), f"{occupancy(record):.0%}", all_of_it, *counts)
    console.print(table)


def print_grid(records: Sequence[dict[str, Any]], console: Console) -> None:
    """One line for each head_dim and format; a column for each architecture and GQA ratio."""
    columns = list(dict.fromkeys((record["arch"], record["gqa"]) for record in records))
    cells = {(r["head_dim"], r["format"], r["arch"], r["gqa"]): r for r in records}
    table = Table(title="decode_attention: registers, spilled bytes, instructions per KV value")
    for name in ("head_dim", "format", *(f"{arch} GQA {gqa}" for arch, gqa in columns)):
        table.add_column(name)
    for dim, fmt in dict.fromkeys((record["head_dim"], record["format"]) for record in records):
        table.add_row(str(dim), fmt, *(_grid_cell(cells[dim, fmt, *column]) for column in columns))
    console.print(table)


def _grid_cell(record: dict[str, Any]) -> str:
    return f"{record['registers']}, {record['spill_bytes']}, {record['instructions_per_kv_value']:.2f}"


def read_baseline() -> dict[str, Any]:
    """The committed figures: `triton`, the version that made them, and `records`."""
    return json.loads(BASELINE.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def write_baseline(records: Sequence[dict[str, Any]]) -> None:
    """Makes `records` the figures that tests hold later kernels to."""
    import triton

    lines = ",\n".join(f"  {json.dumps(record)}" for record in records)
    text = f'{{"triton": "{triton.__version__}", "records": [\n{lines}\n]}}\n'
    BASELINE.write_text(text, encoding="utf-8")


def grid_arguments(words: Sequence[str]) -> tuple[Sequence[str], Sequence[int]]:
    """Architectures and GQA ratios, in any order, all of either where none is named. Raises ConfigError naming what is neither."""
    archs = [word for word in words if word in ARCHS]
    ratios = [word for word in words if word not in archs]
    _check("grid", ratios, (*ARCHS, *map(str, range(1, MAX_GQA + 1))))
    return archs or tuple(ARCHS), [int(ratio) for ratio in ratios] or GRID_GQA


def main(arguments: Sequence[str]) -> None:
    """Makes the baseline anew; with `grid` prints the grid instead, of the architectures and GQA ratios that follow it or all."""
    if arguments and arguments[0] != "grid":
        raise SystemExit(f"{arguments[0]} is not grid")
    if arguments:
        archs, gqa = grid_arguments(arguments[1:])
        print_grid(compile_grid(archs, gqa=gqa), table_console())
        return
    made = compile_report()
    write_baseline(made)
    print_compiled(made, table_console())


if __name__ == "__main__":  # python -m bench.compile, or python -m bench.compile grid sm_90 4
    main(sys.argv[1:])
