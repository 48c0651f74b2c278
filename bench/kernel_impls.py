"""The implementations that `bench kernels` compares, by name: each built for one case as a function to time, or absent with the reason.

ours            hack_kernels' operation on the back end that it chooses for the device
reference       the same operation's specification in plain torch
fused_dequant   attention on the same pages that expands codes to floats inside the kernel
sdpa_f32, sdpa_bf16, folded_f32, folded_bf16, matmul_bf16   see bench/kernel_baselines.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

import hack_kernels
from bench.kernel_baselines import fastest
from bench.kernel_cases import DTYPE, Case, Inputs
from bench.roofline import Work

ON_PAGES = ("ours", "reference", "fused_dequant")
DENSE = ("sdpa_f32", "sdpa_bf16", "folded_f32", "folded_bf16", "matmul_bf16")
NAMES = (*ON_PAGES, *DENSE)
DEFAULT_NAMES = tuple(name for name in NAMES if name != "reference")
GIB = 1 << 30
DENSE_BYTES = {"cpu": GIB, "cuda": 16 * GIB}


@dataclass(frozen=True)
class Implementation:
    """`run` returns the output; `note` says which variant it is. Bytes read are those of K and V, or of pages and residual."""

    name: str
    run: Callable[[], Tensor]
    note: str
    work: Work


@dataclass(frozen=True)
class Absent:
    """An implementation that this case cannot have."""

    name: str
    reason: str


class Builder:
    """Builds implementations for one attention case; those that read the same dense K and V share them."""

    def __init__(self, inputs: Inputs, device: str) -> None:
        self._inputs = inputs
        self._device = device
        self._dense: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def build(self, name: str) -> Implementation | Absent:
        return self._on_pages(name) if name in ON_PAGES else self._on_dense(name)

    def _on_pages(self, name: str) -> Implementation | Absent:
        case, attend = self._inputs.case, _find(name, self._inputs.case)
        if isinstance(attend, Absent):
            return attend
        try:
            call = attend(self._inputs)
            call()
        except (NotImplementedError, ImportError, ValueError) as error:
            return Absent(name, str(error).partition("\n")[0])
        pages = case.batch * case.pages_per_sequence * case.kv_heads * case.fmt.page_bytes
        exact = 2 * case.batch * case.kv_heads * case.residual_tokens * case.head_dim * DTYPE.itemsize
        arithmetic = "bfloat16" if name == "fused_dequant" else "float32" if case.fmt.raw else "int8"
        note = _backend_note(name, self._device)
        return Implementation(name, call, note, Work(pages + exact, 0, _multiply_adds(case), arithmetic))

    def _on_dense(self, name: str) -> Implementation | Absent:
        case = self._inputs.case
        kind, _, suffix = name.partition("_")
        dtype = torch.float32 if suffix == "f32" else DTYPE
        if kind == "folded" and case.op != "decode":
            return Absent(name, "queries of a chunk are rows already")
        size, limit = _dense_bytes(case, dtype), DENSE_BYTES[self._device]
        if size > limit:
            return Absent(
                name, f"K, V and scores take {size / GIB:.1f} GiB, more than the {limit // GIB} GiB allowed here"
            )
        if dtype not in self._dense:
            self._dense[dtype] = self._inputs.dense(dtype)
        run, note = fastest(
            kind, self._queries().to(dtype), *self._dense[dtype], self._inputs.scale, case.op == "prefill"
        )
        out = run if case.op == "prefill" else lambda: run().squeeze(2)
        read = 2 * case.batch * case.kv_heads * case.tokens * case.head_dim * dtype.itemsize
        work = Work(read, 0, _multiply_adds(case), str(dtype).removeprefix("torch."))
        return Implementation(name, out, note, work)

    def _queries(self) -> Tensor:
        """[batch, heads, rows, head_dim]; a chunk is the same for every sequence."""
        case, q = self._inputs.case, self._inputs.q
        return q.unsqueeze(2) if case.op == "decode" else q.transpose(0, 1).unsqueeze(0).repeat(case.batch, 1, 1, 1)


def build_closing(name: str, case: Case, k: Tensor, v: Tensor, device: str) -> Implementation | Absent:
    """`name` for a close_pages case: k, v [num_pages, kv_heads, page_tokens, head_dim]."""
    if name not in ("ours", "reference"):
        return Absent(name, "it closes no pages")
    out = torch.empty(*k.shape[:2], case.fmt.page_bytes, dtype=torch.uint8, device=device)
    close = hack_kernels.close_pages if name == "ours" else _reference("close_pages")
    run = partial(close, case.fmt, k, v, out)
    work = Work(2 * k.nbytes, out.nbytes, 0, "float32")
    return Implementation(name, run, _backend_note(name, device), work)


def _find(name: str, case: Case) -> Callable[[Inputs], Callable[[], Tensor]] | Absent:
    """What makes the function to time."""
    operation = f"{case.op}_attention"
    if case.op == "prefill" and case.batch > 1:
        return Absent(name, "prefill_attention takes one sequence")
    if name == "fused_dequant" and case.fmt.raw:
        return Absent(name, "raw pages hold no codes")
    if name == "fused_dequant" and case.op != "decode":
        return Absent(name, f"hack_kernels has no fused dequantization for {case.op}")
    if name != "reference" and case.op == "decode":
        return partial(_planned, dequant=name == "fused_dequant")
    attend = _reference(operation) if name == "reference" else getattr(hack_kernels, operation)
    arguments = _decode_arguments if case.op == "decode" else _prefill_arguments
    return lambda inputs: partial(attend, *arguments(inputs))


def _planned(inputs: Inputs, dequant: bool) -> Callable[[], Tensor]:
    """As a decode worker does it: the step is planned once for all layers, and a layer's call is timed."""
    counts, rows, tokens = _counts(inputs)
    pages, residual = inputs.pages.unsqueeze(0), inputs.residual.unsqueeze(0)
    plan = hack_kernels.plan_decode(
        inputs.case.fmt, pages, inputs.page_table, counts, residual, rows, tokens, dequant=dequant
    )
    return partial(plan.attend, 0, inputs.q, inputs.scale)


def _reference(operation: str) -> Callable[..., Tensor]:
    function: Callable[..., Tensor] = getattr(import_module(f"hack_kernels.reference.{operation}"), operation)
    return function


def _backend_note(name: str, device: str) -> str:
    return "plain torch" if name == "reference" else f"back end {hack_kernels.choose(device).name}"


def _decode_arguments(inputs: Inputs) -> tuple[object, ...]:
    counts, rows, tokens = _counts(inputs)
    history = inputs.q, inputs.pages, inputs.page_table, counts
    return inputs.case.fmt, *history, inputs.residual, rows, tokens, inputs.scale


def _counts(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """num_pages, residual_rows and residual_tokens of every sequence."""
    case = inputs.case
    rows = torch.arange(case.batch, device=inputs.page_table.device)
    return torch.full_like(rows, case.pages_per_sequence), rows, torch.full_like(rows, case.residual_tokens)


def _prefill_arguments(inputs: Inputs) -> tuple[object, ...]:
    k, v = (x[0].contiguous() for x in inputs.exact())
    return inputs.case.fmt, inputs.q, k, v, inputs.scale, inputs.pages, inputs.page_table[0]


def _dense_bytes(case: Case, dtype: torch.dtype) -> int:
    """Of a baseline's K and V, and for prefill of its mask and scores."""
    kv = 2 * case.batch * case.kv_heads * case.tokens * case.head_dim * dtype.itemsize
    scores = 0 if case.op == "decode" else case.chunk * case.tokens * (1 + case.batch * case.heads * dtype.itemsize)
    return kv + scores


def _multiply_adds(case: Case) -> int:
    """Of both products; a chunk's masked half is left out."""
    rows, seen = (1, case.tokens) if case.op == "decode" else (case.chunk, case.tokens - case.chunk // 2)
    return 2 * case.batch * rows * case.heads * seen * case.head_dim
