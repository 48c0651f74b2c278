"""Checks of an operation's arguments: every failure is a ValueError that begins with the argument's name.

Values are checked on CPU tensors alone: to read them from a GPU would stall it.
"""

from __future__ import annotations

from types import EllipsisType

import torch
from torch import Tensor

from .page_format import PageFormat

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BYTES = (torch.uint8,)
INDICES = (torch.int64,)
MAX_HEAD_DIM = 512


def check_format(fmt: PageFormat) -> None:
    """Integer dot products over more than 512 channels or tokens could leave float32's exact range (127 * 255 * 512 < 2**24)."""
    for name, size in (("head_dim", fmt.head_dim), ("page_tokens", fmt.page_tokens)):
        if size > MAX_HEAD_DIM:
            raise ValueError(f"fmt: {name}={size} is more than {MAX_HEAD_DIM}")


def check_tensor(
    name: str,
    tensor: Tensor,
    shape: tuple[int | str | EllipsisType, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device | None = None,
) -> None:
    """`shape` holds sizes, a word for a dimension of any size, and first perhaps `...`. Without `device` any device will do."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__}, not a tensor")
    if not _fits(tuple(tensor.shape), shape):
        wanted = ", ".join("..." if size is ... else str(size) for size in shape)
        raise ValueError(f"{name} has shape {list(tensor.shape)}, not [{wanted}]")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} has dtype {tensor.dtype}, not {' or '.join(map(str, dtypes))}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, not on {device}")


def _fits(have: tuple[int, ...], want: tuple[int | str | EllipsisType, ...]) -> bool:
    if want[0] is ...:
        want = want[1:]
        have = have[-len(want) :]
    return len(have) == len(want) and all(
        isinstance(size, str) or size == n for n, size in zip(have, want, strict=True)
    )


def check_pool(fmt: PageFormat, pages: Tensor, kv_heads: int | str, device: torch.device | None = None) -> None:
    check_tensor("pages", pages, ("num_slots", kv_heads, fmt.page_bytes), BYTES, device)


def check_residual(fmt: PageFormat, residual: Tensor, kv_heads: int, device: torch.device) -> None:
    shape = ("rows", 2, kv_heads, fmt.residual_slots, fmt.head_dim)
    check_tensor("residual", residual, shape, (fmt.dtype,), device)


def check_range(name: str, tensor: Tensor, low: int, high: int) -> None:
    """Every value of an integer tensor on the CPU lies in low..high."""
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return
    smallest, largest = (int(x) for x in torch.aminmax(tensor))
    if smallest < low or largest > high:
        raise ValueError(f"{name} holds {smallest if smallest < low else largest}, not all in {low}..{high}")


def check_heads(name: str, heads: int, kv_heads: int) -> None:
    if kv_heads == 0 or heads == 0 or heads % kv_heads:
        raise ValueError(f"{name} has {heads} heads, not a multiple of {kv_heads} KV heads")
