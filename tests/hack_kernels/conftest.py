"""The kernels that a test runs on: the reference, and the native ones on every instruction set that this CPU can run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hack_kernels import choose
from hack_kernels.cpu import library

ISAS = ("portable", "avx2", "avxvnni", "avx512", "avx512bf16")


def skip_unless_runnable(isa: str) -> None:
    try:
        if isa not in library.isas():
            pytest.skip(f"this CPU cannot run {isa}")
    except library.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small work on many threads mostly waits, most of all on a busy machine. Puts the number of torch's threads back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    """The choice of a back end is made anew in the test, and again after it."""
    choose.cache_clear()
    yield
    choose.cache_clear()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, fresh_choice: None) -> Iterator[str]:
    """The native kernels on one instruction set."""
    skip_unless_runnable(request.param)
    monkeypatch.setenv("PACKHORSE_KERNELS", "cpu")
    with library.using_isa(request.param):
        yield request.param


@pytest.fixture(params=["reference", *ISAS])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, fresh_choice: None) -> Iterator[str]:
    """The reference, or the native kernels on one instruction set."""
    if request.param == "reference":
        monkeypatch.setenv("PACKHORSE_KERNELS", "reference")
        yield "reference"
        return
    skip_unless_runnable(request.param)
    monkeypatch.setenv("PACKHORSE_KERNELS", "cpu")
    assert choose("cpu").name == "cpu"
    with library.using_isa(request.param):
        yield request.param
