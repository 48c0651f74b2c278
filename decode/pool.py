"""The decode worker's memory: page slots and residual rows of all layers, and who holds which.

A reservation is made before a job's prefill starts and covers its whole life, so that no job runs out of pages half-way.
Bookkeeping happens on the event loop's thread; the engine's thread reads and writes the slots of the jobs it runs. It knows nothing
of streams, tokens or the scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hack_kernels.page_format import PageFormat
from model.adapter import ModelInfo
from packhorse.errors import OverloadedError, PackhorseError


@dataclass(frozen=True)
class HostCopy:
    """What a swapped-out job had on the device: its closed pages and its residual, byte by byte, and how many pages are reserved for it."""

    num_pages: int
    pages: torch.Tensor  # uint8 [layers, closed pages, kv_heads, page_bytes]
    residual: torch.Tensor  # [layers, 2 (K, V), kv_heads, residual_slots, head_dim]


@dataclass(frozen=True)
class Reservation:
    """What one job holds: page p of every layer lies in slot slots[p], its residual in row `row`."""

    job_id: str
    slots: tuple[int, ...]
    row: int


class PagePool:
    """pages uint8 [layers, num_slots, kv_heads, page_bytes]; residual [layers, rows, 2 (K, V), kv_heads, residual_slots, head_dim]."""

    def __init__(self, info: ModelInfo, fmt: PageFormat, num_slots: int, max_jobs: int) -> None:
        self.fmt = fmt
        self.pages = torch.zeros(
            (info.layers, num_slots, info.kv_heads, fmt.page_bytes), dtype=torch.uint8, device=info.device
        )
        self.residual = torch.zeros(
            (info.layers, max_jobs, 2, info.kv_heads, fmt.residual_slots, info.head_dim),
            dtype=info.dtype,
            device=info.device,
        )
        self._free_slots = list(range(num_slots))[::-1]
        self._free_rows = list(range(max_jobs))[::-1]
        self._held: dict[str, Reservation] = {}
        self._out: dict[str, HostCopy] = {}

    @staticmethod
    def slot_bytes(info: ModelInfo, fmt: PageFormat) -> int:
        """Bytes of one page over all layers and KV heads."""
        return info.layers * info.kv_heads * fmt.page_bytes

    @property
    def num_slots(self) -> int:
        return self.pages.shape[1]

    @property
    def used_slots(self) -> int:
        return self.num_slots - len(self._free_slots)

    @property
    def used_rows(self) -> int:
        return len(self._held)

    @property
    def host_pages_used(self) -> int:
        """Pages that are reserved by swapped-out jobs."""
        return sum(copy.num_pages for copy in self._out.values())

    def reserve(self, job_id: str, num_pages: int) -> Reservation:
        """Raises OverloadedError when the pool has too few free slots or no free residual row."""
        if job_id in self._held or job_id in self._out:
            raise PackhorseError(f"job {job_id} holds a reservation already")
        if num_pages > len(self._free_slots) or not self._free_rows:
            raise OverloadedError(
                f"job {job_id} needs {num_pages} pages and a residual row; free: "
                f"{len(self._free_slots)} pages, {len(self._free_rows)} rows"
            )
        slots = tuple(self._free_slots.pop() for _ in range(num_pages))
        reservation = self._held[job_id] = Reservation(job_id, slots, self._free_rows.pop())
        return reservation

    def swap_out(self, job_id: str, closed_pages: int) -> None:
        """Moves the first `closed_pages` and the residual to host memory, and frees slots and row. The engine must not run the job."""
        reservation = self._held[job_id]
        slots = torch.tensor(reservation.slots[:closed_pages], dtype=torch.int64, device=self.pages.device)
        copy = HostCopy(
            len(reservation.slots),
            self.pages.index_select(1, slots).cpu(),
            self.residual[:, reservation.row].to("cpu", copy=True),
        )
        self.free(job_id)
        self._out[job_id] = copy

    def swap_in(self, job_id: str) -> Reservation:
        """Moves a swapped-out job back, into other slots as a rule. Raises OverloadedError, and changes nothing, when it does not fit."""
        copy = self._out.pop(job_id)
        try:
            reservation = self.reserve(job_id, copy.num_pages)
        except OverloadedError:
            self._out[job_id] = copy
            raise
        slots = torch.tensor(reservation.slots[: copy.pages.shape[1]], dtype=torch.int64, device=self.pages.device)
        self.pages.index_copy_(1, slots, copy.pages.to(self.pages.device))
        self.residual[:, reservation.row] = copy.residual.to(self.residual.device)
        return reservation

    def free(self, job_id: str) -> None:
        """Gives the job's slots and row, or its host memory, back. The engine must not run the job any more."""
        if self._out.pop(job_id, None) is not None:
            return
        reservation = self._held.pop(job_id)
        self._free_slots.extend(reversed(reservation.slots))
        self._free_rows.append(reservation.row)
