"""Which back end runs the operations on a device, and why. A back end is a package of this folder with the reference's file names."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch

from .cpu.library import Unavailable, current_isa
from .triton import availability

VARIABLE = "PACKHORSE_KERNELS"
NAMES = ("reference", "cpu", "triton")


@dataclass(frozen=True)
class Backend:
    """`name` is the package under hack_kernels; `reason` one sentence for people."""

    name: str
    reason: str


@lru_cache
def choose(device: torch.device | str) -> Backend:
    """The back end for tensors on `device`: the one that PACKHORSE_KERNELS names, else the fastest that has been proven on such devices.

    It is made once for each device. Raises ValueError for a device that torch does not know, and for a PACKHORSE_KERNELS
    that is unknown or cannot run here.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device={device!r}: {error}") from None
    return _choose(kind)


def _choose(kind: str) -> Backend:
    forced = os.environ.get(VARIABLE) or None
    if forced is not None and forced not in NAMES:
        raise ValueError(f"{VARIABLE}={forced!r} is not one of {', '.join(NAMES)}")
    if forced == "reference":
        return Backend("reference", f"plain torch, as {VARIABLE} says")
    if forced not in (None, "cpu" if kind == "cpu" else "triton"):
        raise ValueError(f"{VARIABLE}={forced} cannot run on {kind} devices")
    try:
        if kind == "cpu":
            return Backend("cpu", f"native kernels, {current_isa()}")
        if forced == "triton":
            return Backend("triton", f"Triton kernels on {availability.current_gpu(kind)}, as {VARIABLE} says")
    except (Unavailable, availability.Unavailable) as error:
        if forced is not None:
            raise ValueError(f"{VARIABLE}={forced} cannot run: {error}") from None
        return Backend("reference", f"plain torch: {error}")
    return Backend(
        "reference", f"plain torch: the Triton kernels have not been run on {kind} yet; {VARIABLE}=triton chooses them"
    )


def implementation(device: torch.device, operation: str, file: str | None = None) -> Callable[..., Any]:
    """The function `operation` of the chosen back end's file of the same name, or of `file`."""
    return function_of(choose(device).name, operation, file or operation)


@lru_cache
def function_of(backend: str, operation: str, file: str) -> Callable[..., Any]:
    """The function `operation` of the file `file` of back end `backend`."""
    return getattr(import_module(f"hack_kernels.{backend}.{file}"), operation)  # type: ignore[no-any-return]
