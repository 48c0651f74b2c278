"""Copies between the page pool and host memory, beside the engine's steps: each way on a thread of its own, one job after the other.

On CUDA each thread has a stream of its own, and host memory is pinned, so that copies and kernels overlap. Pages are gathered
a few at a time: there is never a second copy of a job on the device. Knows nothing of jobs, or of whose slots it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

PAGES_AT_ONCE = 16  # of all layers: a few MB of an 8B model's; ours
Result = TypeVar("Result")


@dataclass(frozen=True)
class HostCopy:
    """What a job had on the device, byte by byte: its closed pages, PAGES_AT_ONCE together, and its residual."""

    pages: tuple[torch.Tensor, ...]  # each uint8 [layers, up to PAGES_AT_ONCE, kv_heads, page_bytes]
    residual: torch.Tensor  # [layers, 2 (K, V), kv_heads, residual_slots, head_dim]

    @property
    def num_bytes(self) -> int:
        return sum(part.numel() for part in self.pages) + self.residual.numel() * self.residual.element_size()


class Direction:
    """One way: a thread, and on CUDA a stream."""

    def __init__(self, name: str, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, copy: Callable[[], Result]) -> tuple[Result, float]:
        """Returns once the copy is done: its bytes are there; and the seconds that it took. One copy runs after the other."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, copy)

    def _run(self, copy: Callable[[], Result]) -> tuple[Result, float]:
        started = time.monotonic()
        with self._beside():
            result = copy()
        return result, time.monotonic() - started

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        """Starts after the kernels that were launched before, and ends when the stream is done."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.default_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def close(self) -> None:
        self._thread.shutdown()


class Copier:
    """pages uint8 [layers, num_slots, kv_heads, page_bytes]; residual [layers, rows, 2 (K, V), kv_heads, residual_slots, head_dim]."""

    def __init__(self, pages: torch.Tensor, residual: torch.Tensor) -> None:
        self._pages, self._residual = pages, residual
        self._pinned = pages.device.type == "cuda"
        self._out, self._back = Direction("swap-out", pages.device), Direction("swap-in", pages.device)

    async def out(self, slots: Sequence[int], row: int) -> tuple[HostCopy, float]:
        """What lies in `slots`, in their order, and in the row; and the seconds that it took. Nobody may write there meanwhile."""
        return await self._out.run(lambda: self.copy_out(slots, row))

    async def back(self, copy: HostCopy, slots: Sequence[int], row: int) -> None:
        """Writes it into `slots` and the row. Nobody may read there meanwhile."""
        await self._back.run(lambda: self.copy_back(copy, slots, row))

    def close(self) -> None:
        """Ends the threads, after the copies under way."""
        self._out.close()
        self._back.close()

    # ---- on the threads

    def copy_out(self, slots: Sequence[int], row: int) -> HostCopy:
        pages = tuple(self._to_host(self._pages.index_select(1, index)) for index in self._parts(slots))
        return HostCopy(pages, self._to_host(self._residual[:, row].contiguous()))

    def copy_back(self, copy: HostCopy, slots: Sequence[int], row: int) -> None:
        for index, part in zip(self._parts(slots), copy.pages, strict=True):
            self._pages.index_copy_(1, index, part.to(self._pages.device, non_blocking=True))
        self._residual[:, row] = copy.residual.to(self._residual.device, non_blocking=True)

    def _to_host(self, values: torch.Tensor) -> torch.Tensor:
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=self._pinned)
        return host.copy_(values, non_blocking=True)

    def _parts(self, slots: Sequence[int]) -> Iterator[torch.Tensor]:
        for first in range(0, len(slots), PAGES_AT_ONCE):
            part = slots[first : first + PAGES_AT_ONCE]
            yield torch.tensor(part, dtype=torch.int64, device=self._pages.device)
