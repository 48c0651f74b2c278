"""The choice of a back end, and what importing the folder costs and needs."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import torch

import hack_kernels
from hack_kernels import Backend, choose
from hack_kernels.backend import implementation

FOLDER = Path(hack_kernels.__file__).parent


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", torch.device("cpu")])
def test_the_reference_runs_everywhere_and_says_why(device: torch.device | str) -> None:
    backend = choose(device)
    assert backend == Backend("reference", backend.reason)
    assert torch.device(device).type in backend.reason


def test_an_unknown_device_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="abacus"):
        choose("abacus")


@pytest.mark.parametrize(
    ("operation", "file"),
    [
        ("close_pages", None),
        ("open_pages", "close_pages"),
        ("append", None),
        ("close_full_blocks", "append"),
        ("decode_attention", None),
        ("prefill_attention", None),
    ],
)
def test_every_operation_has_an_implementation(operation: str, file: str | None) -> None:
    found = implementation(torch.device("cpu"), operation, file)
    assert found.__module__ == f"hack_kernels.reference.{file or operation}"


def test_all_names_exist() -> None:
    assert hack_kernels.__all__ == sorted(hack_kernels.__all__)
    for name in hack_kernels.__all__:
        assert callable(getattr(hack_kernels, name))


def test_imports_torch_triton_and_the_standard_library_alone() -> None:
    allowed = {"torch", "triton", "hack_kernels"} | set(sys.stdlib_module_names)
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert {name.split(".")[0] for name in names} <= allowed, path
