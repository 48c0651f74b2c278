"""The choice of a back end, and what importing the folder costs and needs."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import torch

import hack_kernels
from hack_kernels import Backend, backend, choose
from hack_kernels.backend import implementation
from hack_kernels.cpu import build, library

FOLDER = Path(hack_kernels.__file__).parent
OPERATIONS = [
    ("close_pages", None),
    ("open_pages", "close_pages"),
    ("append", None),
    ("decode_attention", None),
    ("fused_dequant_attention", "fused_dequant"),
    ("prefill_attention", None),
]


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch, fresh_choice: None) -> None:
    monkeypatch.delenv("PACKHORSE_KERNELS", raising=False)


def test_the_native_kernels_serve_the_cpu_and_name_the_instruction_set() -> None:
    if not build.library_path().exists():
        pytest.skip("the native kernels are not built")
    assert choose("cpu") == Backend("cpu", f"native kernels, {library.current_isa()}")


@pytest.mark.parametrize("reason", ["not built (no compiler: g++ is not on the PATH)", "built from other sources"])
def test_without_them_the_reference_serves_and_says_why(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> str:
        raise library.Unavailable(reason)

    monkeypatch.setattr(backend, "current_isa", unavailable)
    assert choose("cpu") == Backend("reference", f"plain torch: {reason}")
    choose.cache_clear()
    monkeypatch.setenv("PACKHORSE_KERNELS", "cpu")
    with pytest.raises(ValueError, match=r"^PACKHORSE_KERNELS=cpu cannot run: "):
        choose("cpu")


def test_a_library_that_is_missing_or_of_other_sources_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "library_path", lambda: tmp_path / "none.so")
    with pytest.raises(library.Unavailable, match="not built"):
        library.load.__wrapped__()
    monkeypatch.setattr(build, "compiler", lambda: None)
    with pytest.raises(library.Unavailable, match="no compiler"):
        library.load.__wrapped__()
    (tmp_path / "none.so").write_bytes(b"no library")
    with pytest.raises(library.Unavailable, match="do not load"):
        library.load.__wrapped__()


def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if not build.library_path().exists():
        pytest.skip("the native kernels are not built")
    monkeypatch.setattr(build, "source_digest", lambda: "0" * 16)
    with pytest.raises(library.Unavailable, match="other sources"):
        library.load.__wrapped__()


def test_the_environment_forces_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKHORSE_KERNELS", "reference")
    for device in ("cpu", "cuda:1"):
        assert choose(device) == Backend("reference", "plain torch, as PACKHORSE_KERNELS says")


@pytest.mark.parametrize(("name", "device"), [("abacus", "cpu"), ("", "cpu"), ("cpu", "cuda")])
def test_an_impossible_choice_is_refused_by_name(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKHORSE_KERNELS", name)
    if not name:  # as if it were not set
        assert choose(device)
        return
    with pytest.raises(ValueError, match=f"PACKHORSE_KERNELS='?{name}"):
        choose(device)


def test_triton_is_chosen_by_name_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "PACKHORSE_KERNELS=triton" in choose("cuda").reason
    monkeypatch.setenv("PACKHORSE_KERNELS", "triton")
    with pytest.raises(ValueError, match="PACKHORSE_KERNELS=triton cannot run on cpu"):
        choose("cpu")
    monkeypatch.setattr(backend.availability, "current_gpu", lambda _: "a GPU, sm_90")
    choose.cache_clear()
    assert choose("cuda:1") == Backend("triton", "Triton kernels on a GPU, sm_90, as PACKHORSE_KERNELS says")
    for operation, file in OPERATIONS:
        assert implementation(torch.device("cuda"), operation, file)


def test_an_unknown_device_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="abacus"):
        choose("abacus")


def test_an_instruction_set_that_cannot_run_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    if choose("cpu").name != "cpu":
        pytest.skip(choose("cpu").reason)
    monkeypatch.setenv("PACKHORSE_CPU_ISA", "mmx")
    with pytest.raises(ValueError, match=r"PACKHORSE_CPU_ISA='mmx' is not one of portable"):
        library.current_isa()
    monkeypatch.setenv("PACKHORSE_CPU_ISA", "portable")
    assert library.current_isa() == "portable"


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize(("operation", "file"), OPERATIONS)
def test_every_operation_has_an_implementation(
    name: str, operation: str, file: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "cpu" and choose("cpu").name != "cpu":
        pytest.skip(choose("cpu").reason)
    monkeypatch.setenv("PACKHORSE_KERNELS", name)
    choose.cache_clear()
    found = implementation(torch.device("cpu"), operation, file)
    assert found.__module__ in {f"hack_kernels.{owner}.{file or operation}" for owner in (name, "reference")}
    assert (found.__module__.split(".")[1] == name) or operation == "open_pages"


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
