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
        self._host: dict[str, int] = {}  # jobs that have, or will have in a moment, pages in host memory, and how many

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
        """Pages that are reserved by jobs which are out, on their way out, or on their way back."""
        return sum(self._host.values())

    def reserve(self, job_id: str, num_pages: int, digests: Sequence[bytes] = ()) -> Reservation:
        """The longest prefix of the pages with `digests` that is held counts among `num_pages`; the other slots are the job's own.

        Raises OverloadedError, and changes nothing, when the pool has too few slots or no residual row.
        """
        if job_id in self._held or job_id in self._host:
            raise PackhorseError(f"job {job_id} holds a reservation already")
        return self._take(job_id, num_pages, tuple(digests)[:num_pages])

    def _take(self, job_id: str, num_pages: int, digests: tuple[bytes, ...] = ()) -> Reservation:
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

    # ---- preempted jobs: `leave`, a copy, `left`; `come_back`, a copy, `came_back`. While a copy runs the job holds memory on both sides

    def leave(self, job_id: str) -> Reservation:
        """Takes host memory for the job, which the engine must not run; returns what is to be copied there."""
        reservation = self._held[job_id]
        self._host[job_id] = len(reservation.slots)
        return reservation

    def left(self, job_id: str) -> None:
        """The job's pages are in host memory: its slots and its row are free."""
        self._free_device(job_id)

    def come_back(self, job_id: str) -> Reservation:
        """Takes a row and slots of its own for a job that is out: what it shared may have been given up meanwhile.

        Raises OverloadedError, and changes nothing, when it does not fit.
        """
        return self._take(job_id, self._host[job_id])

    def came_back(self, job_id: str) -> None:
        """The job's pages are in their slots again: its host memory is free."""
        del self._host[job_id]

    def free(self, job_id: str) -> None:
        """Gives back what the job holds on both sides. Neither the engine nor a copy may use it any more."""
        self._host.pop(job_id, None)
        if job_id in self._held:
            self._free_device(job_id)

    def _free_device(self, job_id: str) -> None:
        reservation = self._held.pop(job_id)
        self.prefixes.release(reservation.digests[: reservation.shared_pages])
        self._free_slots.extend(reversed(reservation.slots[reservation.shared_pages :]))
        self._free_rows.append(reservation.row)

    def _take_slot(self) -> int:
        return self._free_slots.pop() if self._free_slots else self.prefixes.evict()
