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

    def reserve(self, job_id: str, num_pages: int) -> Reservation:
        """Raises OverloadedError when the pool has too few free slots or no free residual row."""
        if job_id in self._held:
            raise PackhorseError(f"job {job_id} holds a reservation already")
        if num_pages > len(self._free_slots) or not self._free_rows:
            raise OverloadedError(
                f"job {job_id} needs {num_pages} pages and a residual row; free: "
                f"{len(self._free_slots)} pages, {len(self._free_rows)} rows"
            )
        slots = tuple(self._free_slots.pop() for _ in range(num_pages))
        reservation = self._held[job_id] = Reservation(job_id, slots, self._free_rows.pop())
        return reservation

    def free(self, job_id: str) -> None:
        """Gives the job's slots and row back. The engine must not run the job any more."""
        reservation = self._held.pop(job_id)
        self._free_slots.extend(reversed(reservation.slots))
        self._free_rows.append(reservation.row)
