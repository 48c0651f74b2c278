"""Which back end runs the operations on a device, and why. A back end is a package of this folder with the reference's file names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch


@dataclass(frozen=True)
class Backend:
    """`name` is the package under hack_kernels; `reason` one sentence for people."""

    name: str
    reason: str


def choose(device: torch.device | str) -> Backend:
    """The back end for tensors on `device`. Raises ValueError for a device that torch does not know."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device={device!r}: {error}") from None
    return Backend("reference", f"plain torch: this version has no native kernels for {kind} devices")


@lru_cache
def implementation(device: torch.device, operation: str, file: str | None = None) -> Callable[..., Any]:
    """The function `operation` of the chosen back end's file of the same name, or of `file`."""
    return getattr(import_module(f"hack_kernels.{choose(device).name}.{file or operation}"), operation)  # type: ignore[no-any-return]
