"""The decode worker's memory: page slots and residual rows of all layers, and who holds which.

A reservation is made before a job's prefill starts and covers its whole life, so that no job runs out of pages half-way. The pages of its
prompt may be shared with other jobs, and stay when it ends until their slots are wanted (prefix_store.py).
Bookkeeping happens on the event loop's thread; the engine's thread reads and writes the slots of the jobs it runs. It knows nothing
of streams, tokens or the scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from decode.prefix_store import PrefixStore
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
    """What one job holds: page p of every layer lies in slot slots[p], its residual in row `row`.

    The first `shared_pages` are complete and may serve other jobs too: nobody writes to them. `digests` are those of the prompt's
    pages, as far as the job may share.
    """

    job_id: str
    slots: tuple[int, ...]
    row: int
    digests: tuple[bytes, ...] = ()
    shared_pages: int = 0


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
        self.prefixes = PrefixStore()
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
        """Slots that jobs hold; all others can be reserved."""
        return self.num_slots - self._available

    @property
    def cached_slots(self) -> int:
        """Of those that can be reserved, slots of prompt pages that jobs left behind."""
        return self.prefixes.num_idle

    @property
    def _available(self) -> int:
        return len(self._free_slots) + self.prefixes.num_idle

    @property
    def used_rows(self) -> int:
        return len(self._held)

    @property
    def host_pages_used(self) -> int:
        """Pages that are reserved by swapped-out jobs."""
        return sum(copy.num_pages for copy in self._out.values())

    def reserve(self, job_id: str, num_pages: int, digests: Sequence[bytes] = ()) -> Reservation:
        """The longest prefix of the pages with `digests` that is held counts among `num_pages`; the other slots are the job's own.

        Raises OverloadedError, and changes nothing, when the pool has too few slots or no residual row.
        """
        if job_id in self._held or job_id in self._out:
            raise PackhorseError(f"job {job_id} holds a reservation already")
        digests = tuple(digests)[:num_pages]
        shared = self.prefixes.use(digests)
        if num_pages - len(shared) > self._available or not self._free_rows:
            self.prefixes.release(digests[: len(shared)])
            raise OverloadedError(
                f"job {job_id} needs {num_pages} pages and a residual row; free: "
                f"{self._available} pages, {len(self._free_rows)} rows"
            )
        slots = (*shared, *(self._take_slot() for _ in range(num_pages - len(shared))))
        reservation = Reservation(job_id, slots, self._free_rows.pop(), digests, len(shared))
        self._held[job_id] = reservation
        return reservation

    def share(self, job_id: str) -> Reservation:
        """All pages of the job's prompt are complete: from now on they may serve other jobs.

        Pages that another job brought meanwhile replace the job's own, whose slots are free then. The engine must not run the job yet.
        """
        old = self._held[job_id]
        first, end = old.shared_pages, len(old.digests)
        own = old.slots[first:end]
        slots = self.prefixes.share(old.digests[first:], own)
        self._free_slots.extend(mine for mine, now in zip(own, slots, strict=True) if mine != now)
        new = replace(old, slots=(*old.slots[:first], *slots, *old.slots[end:]), shared_pages=end)
        self._held[job_id] = new
        return new

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
        """Moves a swapped-out job back, into slots of its own: what it shared may have been given up meanwhile.

        Raises OverloadedError, and changes nothing, when it does not fit.
        """
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
        self.prefixes.release(reservation.digests[: reservation.shared_pages])
        self._free_slots.extend(reversed(reservation.slots[reservation.shared_pages :]))
        self._free_rows.append(reservation.row)

    def _take_slot(self) -> int:
        return self._free_slots.pop() if self._free_slots else self.prefixes.evict()
