"""The Triton kernels against the reference, interpreted on the CPU: tests/hack_kernels/triton_cases.py says what each case holds."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from hack_kernels import PageFormat
from hack_kernels.triton.availability import Unavailable, current_gpu
from tests.hack_kernels.triton_process import needs_triton, run_interpreted, run_module

CASES = [
    "formats",
    "shapes",
    "dtypes",
    "several",
    "dequant",
    "poison",
    "extremes",
    "empty",
    "closing",
    "growing",
    "prefill",
    "ptx",
]


@needs_triton
@pytest.mark.parametrize("case", CASES)
def test_interpreted(case: str) -> None:
    run_interpreted("triton_cases", case)


@needs_triton
def test_every_launcher_compiles_what_it_launches() -> None:
    kernels = run_module("triton_launches").split()
    assert kernels == [
        "append_raw_tokens", "append_tokens", "attend_chunk", "attend_pages", "attend_raw_pages", "close_blocks",
        "merge_splits",
    ]  # fmt: skip


def test_the_package_imports_no_triton() -> None:
    code = "import sys, hack_kernels, hack_kernels.triton, hack_kernels.triton.availability; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(Unavailable, match="not on cpu"):
        current_gpu("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(Unavailable, match=r"NVIDIA GPU|not installed"):
            current_gpu()


@needs_triton
@pytest.mark.parametrize(
    ("fmt", "named"),
    [
        (PageFormat(320, torch.bfloat16, 2, 2), "head_dim=320"),
        (PageFormat(72, torch.bfloat16, 4, 4), "head_dim=72"),
        (PageFormat(128, torch.bfloat16, 2, 2, page_tokens=32), "page_tokens=32"),
    ],
)
def test_a_format_without_a_kernel_is_an_error_that_names_it(fmt: PageFormat, named: str) -> None:
    from hack_kernels.triton.layout import layout_of

    with pytest.raises(ValueError, match=named):
        layout_of(fmt)
