"""The jobs of one request while they run: submitted on entry, their pieces as they come, cancelled on exit where still open.

It knows nothing of HTTP: who leaves early, for whatever reason, leaves nothing behind.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Self

from gateway.backend import Events
from gateway.choice import Choice, Piece
from gateway.service import Service
from packhorse.errors import PackhorseError
from transport.messages import Job


class Generation:
    """`choices` are in the order of `jobs`. `started_at` is when the request came, by time.monotonic()."""

    def __init__(self, service: Service, jobs: Sequence[Job], started_at: float) -> None:
        self.choices = [Choice(job, service.tokenizer) for job in jobs]
        self._service = service
        self._started_at = started_at
        self._open = dict(enumerate(self.choices))
        self._last_at: dict[int, float] = {}  # time of each choice's newest token
        self._events: Events | None = None

    async def __aenter__(self) -> Self:
        self._events = self._service.backend.submit([choice.job for choice in self.choices])
        return self

    async def __aexit__(self, *_: object) -> None:
        for choice in self._open.values():
            self._service.backend.cancel(choice.job.job_id, "the client left or its request failed")

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """(place in `choices`, piece) as they come, until all choices are over. Raises the first job's error.

        Waits without limit: the scheduler's deadlines, or its silence, end every job.
        """
        assert self._events is not None, "pieces() is for inside `async with`"
        while self._open:
            place, event = await self._events.get()
            choice = self._open.get(place)
            if choice is None:
                continue  # tokens past a stop string that the worker did not see
            if isinstance(event, PackhorseError):
                del self._open[place]
                raise event
            piece = choice.push(event)
            self._observe_token(place)
            if piece.finish_reason is not None:
                self._finish(place, choice)
            yield place, piece
        self._service.metrics.jct.observe(time.monotonic() - self._started_at)

    def _observe_token(self, place: int) -> None:
        now = time.monotonic()
        metrics = self._service.metrics
        if place in self._last_at:
            metrics.itl.observe(now - self._last_at[place])
        else:
            metrics.ttft.observe(now - self._started_at)
        self._last_at[place] = now
        metrics.completion_tokens.inc()

    def _finish(self, place: int, choice: Choice) -> None:
        del self._open[place]
        self._service.backend.cancel(choice.job.job_id, "a stop string was found")  # unknown, unless the worker goes on
        if choice.stats is not None:
            self._service.metrics.observe_job(choice.stats)
