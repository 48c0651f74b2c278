"""Imports point one way, and nothing that runs foreign code when it loads data is used anywhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEAVES = {"packhorse.errors", "packhorse.config"}
MAY_USE = {
    "hack_kernels": {"hack_kernels"},
    "transport": {"transport"},
    "model": {"model", "transport", "hack_kernels"},
    "prefill": {"prefill", "model", "transport", "hack_kernels"},
    "decode": {"decode", "model", "transport", "hack_kernels"},
    "scheduler": {"scheduler", "transport"},
    "gateway": {"gateway", "transport"},
    "packhorse": {"packhorse", "gateway", "scheduler", "prefill", "decode", "model", "transport", "hack_kernels", "bench"},
    "bench": {"bench", "packhorse", "gateway", "scheduler", "prefill", "decode", "model", "transport", "hack_kernels"},
}  # fmt: skip
OURS = set(MAY_USE)
WITHOUT_TORCH = {"torch", "triton"}
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"recv_pyobj", "send_pyobj", "recv_serialized"}


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every absolute import, also of those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def breaks(folder: str, path: Path, module: str) -> bool:
    top = module.split(".")[0]
    if top not in OURS or top in MAY_USE[folder]:
        return False
    if folder == "hack_kernels":
        return True
    leaf = ".".join(module.split(".")[:2])
    if top == "packhorse":
        return leaf not in LEAVES and module != "packhorse"
    if folder == "scheduler" and (ROOT / "scheduler" / "simulator") in path.parents:
        return leaf != "decode.prefix_store"
    return not (folder == "gateway" and (leaf == "model.text" or module == "model"))


@pytest.mark.parametrize("folder", sorted(MAY_USE))
def test_imports_point_one_way(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files(folder)
        for line, module in imports(path)
        if breaks(folder, path, module)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_rule_can_be_broken() -> None:
    path = ROOT / "scheduler" / "x.py"
    assert breaks("scheduler", path, "model.adapter")
    assert breaks("transport", path, "packhorse.cli")
    assert breaks("hack_kernels", path, "packhorse.errors")
    assert breaks("gateway", path, "model.loader")
    assert breaks("scheduler", path, "decode.prefix_store")
    assert breaks("scheduler", path.parent / "simulator" / "x.py", "decode.pool")
    assert not breaks("scheduler", path.parent / "simulator" / "x.py", "decode.prefix_store.PrefixStore")
    assert not breaks("gateway", path, "model.text")
    assert not breaks("decode", path, "packhorse.errors.ConfigError")


@pytest.mark.parametrize("folder", ["scheduler", "gateway", "transport"])
def test_no_torch_where_tensors_are_not_needed(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files(folder)
        for line, module in imports(path)
        if module.split(".")[0] in WITHOUT_TORCH
    ]
    assert not wrong, "\n".join(wrong)


def test_the_simulator_needs_no_torch() -> None:
    """It takes the decode workers' own store of prefixes, from a folder that may use torch."""
    code = "import sys, scheduler.simulator; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_kernels_need_torch_and_triton_alone() -> None:
    allowed = {"torch", "triton", "hack_kernels", "numpy"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files("hack_kernels")
        for line, module in imports(path)
        if module.split(".")[0] not in allowed | set(sys.stdlib_module_names)
    ]
    assert not wrong, "\n".join(wrong)


def unsafe(path: Path) -> Iterator[str]:
    """What could run foreign code: pickle in any form, torch.load."""
    for line, module in imports(path):
        if module.split(".")[0] in FORBIDDEN_MODULES:
            yield f"{path.relative_to(ROOT)}:{line} imports {module}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute):
            continue
        of_torch = isinstance(node.value, ast.Name) and node.value.id == "torch" and node.attr in ("load", "save")
        if of_torch or node.attr in FORBIDDEN_CALLS:
            yield f"{path.relative_to(ROOT)}:{node.lineno} uses {node.attr}"


def test_no_pickle_anywhere() -> None:
    wrong = [found for folder in sorted(OURS) for path in files(folder) for found in unsafe(path)]
    assert not wrong, "\n".join(wrong)


def test_every_folder_has_files() -> None:
    assert [folder for folder in OURS if not files(folder)] == []
