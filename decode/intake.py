"""One job's arrival on the decode side: writes what the page stream brings into the pool and knows what is still missing.

A job is complete only when every layer has brought each page once and its residual: nothing is ever decoded on missing
data. Pages that the reservation shares are here already. It knows nothing of links, checksums (the receiver has checked them) or decoding.
"""

from __future__ import annotations

import torch

from decode.pool import PagePool, Reservation
from packhorse.errors import FrameError
from transport.messages import Job, Pages, Residual, StreamEnd


class Intake:
    """`prompt_tokens` of the job say what must come: fmt.num_pages pages and fmt.residual_tokens of residual per layer."""

    def __init__(self, job: Job, pool: PagePool, reservation: Reservation) -> None:
        self.job = job
        self.reservation = reservation
        self._pool = pool
        self._layers = pool.pages.shape[0]
        self._num_pages = pool.fmt.num_pages(len(job.prompt))
        self._residual_tokens = pool.fmt.residual_tokens(len(job.prompt))
        to_come = range(reservation.shared_pages, self._num_pages)
        self._missing_pages = {(layer, page) for layer in range(self._layers) for page in to_come}
        self._missing_residuals = set(range(self._layers))

    def pages(self, message: Pages, payload: memoryview) -> None:
        """Raises FrameError for pages that the job cannot have, that came before, or whose size is wrong."""
        expected = {(message.layer, message.first_page + i) for i in range(message.num_pages)}
        if message.num_pages < 1 or not expected <= self._missing_pages:
            raise FrameError(
                f"job {message.job_id}: pages {message.first_page}..{message.first_page + message.num_pages - 1} of layer "
                f"{message.layer} are not among those that are missing"
            )
        target = self._pool.pages[message.layer]
        self._check_size(message.job_id, "pages", len(payload), message.num_pages * target[0].numel())
        values = torch.frombuffer(payload, dtype=torch.uint8).reshape(message.num_pages, *target.shape[1:])
        slots = self.reservation.slots[message.first_page : message.first_page + message.num_pages]
        target[list(slots)] = values.to(target.device)
        self._missing_pages -= expected

    def residual(self, message: Residual, payload: memoryview) -> None:
        """Raises FrameError for an unexpected layer, number of tokens or size."""
        if message.layer not in self._missing_residuals or message.num_tokens != self._residual_tokens:
            raise FrameError(
                f"job {message.job_id}: residual of layer {message.layer} with {message.num_tokens} tokens; expected each "
                f"of {self._layers} layers once, with {self._residual_tokens}"
            )
        target = self._pool.residual[message.layer, self.reservation.row, :, :, : message.num_tokens]
        self._check_size(message.job_id, "residual", len(payload), target.numel() * target.element_size())
        values = torch.frombuffer(payload, dtype=target.dtype).reshape(target.shape)
        target.copy_(values)
        self._missing_residuals.discard(message.layer)

    def complete(self, message: StreamEnd) -> None:
        """Raises FrameError when the stream ends before everything is here or disagrees with the job."""
        if message.prompt_tokens != len(self.job.prompt) or message.num_pages != self._num_pages:
            raise FrameError(
                f"job {message.job_id}: the stream ends with {message.prompt_tokens} tokens in {message.num_pages} pages; "
                f"the job has {len(self.job.prompt)} in {self._num_pages}"
            )
        if self._missing_pages or self._missing_residuals:
            raise FrameError(
                f"job {message.job_id}: the stream ended with {len(self._missing_pages)} pages and "
                f"{len(self._missing_residuals)} residuals missing"
            )

    @staticmethod
    def _check_size(job_id: str, what: str, got: int, expected: int) -> None:
        if got != expected:
            raise FrameError(f"job {job_id}: {what} payload has {got} bytes, expected {expected}")
