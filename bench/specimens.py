"""The Triton kernels as their launchers would compile them for bf16 models with 8 KV heads, compiled here for GPUs that need not be there.

triton is imported when a specimen is made, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hack_kernels.page_format import PageFormat

ARCHS = {"sm_80": 80, "sm_90": 90}
RAW_KERNELS = ("decode_attention", "merge_splits", "prefill_exact", "append")
_ALIGNED_STRIDES = (
    "slot_stride", "head_stride", "row_stride", "value_stride", "page_stride", "page_head_stride", "token_stride",
    "out_page_stride", "out_head_stride",
)  # fmt: skip
_ATTEND_TYPES = {
    "q": "*bf16", "pages": "*u8", "page_table": "*i64", "num_pages": "*i64", "part_out": "*fp32", "part_top": "*fp32",
    "part_total": "*fp32", "scale": "fp32", "slot_stride": "i64", "head_stride": "i64", "table_stride": "i64",
    "count_stride": "i32", "num_queries": "i32",
}  # fmt: skip


@dataclass(frozen=True)
class Specimen:
    """One kernel as a launcher would compile it. `kv_values` is what an iteration of its main loop attends; 0 without one."""

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int
    kv_values: int = 0
    fusion: bool = True
    max_registers: int | None = None  # of a thread, where the launcher says so


def specimen(kernel: str, fmt: PageFormat, gqa: int) -> Specimen:
    """The kernel called `kernel` for bf16 models with 8 KV heads. Raises ValueError where it has none for `fmt`."""
    if fmt.raw and kernel not in RAW_KERNELS:
        raise ValueError(f"{kernel} has no kernel for raw pages")
    return _SPECIMENS[kernel](fmt, gqa)


def compile_specimen(made: Specimen, arch: str) -> tuple[bytes, int]:
    """The kernel's cubin, and the shared memory of a program in bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = made.kernel.arg_names
    types = made.types | dict.fromkeys(made.constants, "constexpr")
    aligned = [i for i, name in enumerate(names) if types[name].startswith("*") or name in _ALIGNED_STRIDES]
    source = ASTSource(
        made.kernel,
        {name: types[name] for name in names},
        made.constants,
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": made.warps, "num_stages": 1, "enable_fp_fusion": made.fusion, "maxnreg": made.max_registers}
    compiled = triton.compile(source, target=GPUTarget("cuda", ARCHS[arch], 32), options=options)
    return compiled.asm["cubin"], compiled.metadata.shared


def _decode(fmt: PageFormat, gqa: int) -> Specimen:
    return _raw_history(fmt, gqa) if fmt.raw else _history(fmt, gqa)


def _raw_history(fmt: PageFormat, gqa: int) -> Specimen:
    import triton.language as tl

    from hack_kernels.triton.history import attend_raw_pages

    constants = {
        "HEADS": 8 * gqa, "DIM": fmt.head_dim, "PADDED": max(16, _power_of_2(fmt.head_dim)), "TOKENS": fmt.page_tokens,
        "ROWS": 16, "GROUP": gqa, "QUERIES": 1, "TILES": 1, "TERMS": 1, "W_TERMS": 2, "DTYPE": tl.bfloat16, "PTX": True,
    }  # fmt: skip
    return Specimen(attend_raw_pages, _ATTEND_TYPES, constants, 4, 2 * fmt.page_tokens * fmt.head_dim)


def _history(fmt: PageFormat, gqa: int, dequant: bool = False, queries: int = 1) -> Specimen:
    from hack_kernels.triton.history import attend_pages, register_limit
    from hack_kernels.triton.layout import layout_of

    constants = {
        "HEADS": 8 * gqa, "L": layout_of(fmt), "GROUP": gqa, "QUERIES": queries, "TILES": -(-gqa * queries // 8),
        "TERMS": 1, "DEQUANT": dequant, "PTX": True, "STAGES": 1,
    }  # fmt: skip
    values = 2 * fmt.page_tokens * fmt.head_dim
    return Specimen(attend_pages, _ATTEND_TYPES, constants, 1, values, max_registers=register_limit(fmt))


def _fused_dequant(fmt: PageFormat, gqa: int) -> Specimen:
    return _history(fmt, gqa, dequant=True)


def _prefill_history(fmt: PageFormat, gqa: int) -> Specimen:
    from hack_kernels.triton.prefill_attention import HISTORY_QUERIES

    return _history(fmt, gqa, queries=HISTORY_QUERIES)


def _prefill_exact(fmt: PageFormat, gqa: int) -> Specimen:
    import triton.language as tl

    from hack_kernels.triton.prefill_attention import EXACT_ROWS, EXACT_WARPS, attend_chunk

    types = dict.fromkeys(("q", "k", "v", "out"), "*bf16")
    types |= dict.fromkeys(("part_out", "part_top", "part_total"), "*fp32")
    types |= {"scale": "fp32", "num_queries": "i32", "tokens": "i32", "head_stride": "i64", "token_stride": "i64"}
    constants = {
        "HEADS": 8 * gqa, "GROUP": gqa, "QUERIES": EXACT_ROWS // gqa, "ROWS": EXACT_ROWS, "DIM": fmt.head_dim,
        "PADDED": max(16, _power_of_2(fmt.head_dim)), "DTYPE": tl.bfloat16, "TERMS": 1, "PTX": True,
    }  # fmt: skip
    return Specimen(attend_chunk, types | {"splits": "i32"}, constants, EXACT_WARPS, 2 * 64 * fmt.head_dim)


def _merge(fmt: PageFormat, gqa: int) -> Specimen:
    from hack_kernels.triton.decode_attention import merge_splits

    types = dict.fromkeys(("q", "residual", "out"), "*bf16")
    types |= dict.fromkeys(("residual_rows", "residual_tokens"), "*i64")
    types |= dict.fromkeys(("part_out", "part_top", "part_total"), "*fp32") | {"scale": "fp32", "splits": "i32"}
    types |= dict.fromkeys(("row_stride", "value_stride", "head_stride", "slot_stride"), "i64")
    constants = {
        "HEADS": 8 * gqa, "GROUP": gqa, "QUERIES": 1, "DIM": fmt.head_dim, "PADDED": _power_of_2(fmt.head_dim), "TILE": 32,
    }  # fmt: skip
    return Specimen(merge_splits, types, constants, 4)


def _append(fmt: PageFormat, gqa: int) -> Specimen:
    from hack_kernels.triton.append import append_raw_tokens, append_tokens
    from hack_kernels.triton.close import constants_of
    from hack_kernels.triton.close_pages import WARPS
    from hack_kernels.triton.layout import layout_of

    strides = ("row_stride", "value_stride", "head_stride", "slot_stride", "page_stride", "page_head_stride")
    types = dict.fromkeys(("k", "v", "residual"), "*bf16") | {"pages": "*u8"} | dict.fromkeys(strides, "i64")
    types |= dict.fromkeys(("residual_rows", "num_tokens", "open_slots"), "*i64")
    shared = {"KV_HEADS": 8, "PADDED": _power_of_2(fmt.head_dim), "SINKS": fmt.sink_tokens}
    if fmt.raw:
        return Specimen(append_raw_tokens, types, shared | {"DIM": fmt.head_dim, "TOKENS": fmt.page_tokens}, 1)
    constants = shared | {"L": layout_of(fmt), "C": constants_of(fmt)}
    return Specimen(append_tokens, types, constants, WARPS, fusion=False)


def _close(fmt: PageFormat, gqa: int) -> Specimen:
    from hack_kernels.triton.close import constants_of
    from hack_kernels.triton.close_pages import WARPS, close_blocks
    from hack_kernels.triton.layout import layout_of

    strides = ("page_stride", "head_stride", "token_stride", "out_page_stride", "out_head_stride")
    types = {"k": "*bf16", "v": "*bf16", "pages": "*u8"} | dict.fromkeys(strides, "i64")
    return Specimen(close_blocks, types, {"L": layout_of(fmt), "C": constants_of(fmt)}, WARPS, fusion=False)


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


_SPECIMENS: dict[str, Callable[[PageFormat, int], Specimen]] = {
    "decode_attention": _decode,
    "fused_dequant": _fused_dequant,
    "merge_splits": _merge,
    "prefill_history": _prefill_history,
    "prefill_exact": _prefill_exact,
    "append": _append,
    "close_pages": _close,
}
KERNELS = tuple(_SPECIMENS)
