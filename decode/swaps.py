"""Carries out the scheduler's Preempt and Resume: jobs leave the batch for host memory and come back, or for good, while steps go on.

Copies run in the order of the scheduler's messages, which is the plan's: farthest first out, soonest first in. Whatever else ends a job
meanwhile wins; it waits for the copy under way. Knows nothing of page streams, tokens or how a job is ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping

from decode.batch import DecodeSequence
from decode.copier import Copier
from decode.engine import DecodeEngine
from decode.held import Held, State
from decode.pool import PagePool
from packhorse.errors import PackhorseError
from transport.messages import Model, Preempt, Preempted, Replay, Resumed


class Swaps:
    """`jobs` are the worker's; `say` sends to the scheduler, `free` lets go of a job, `fail` ends it with an error."""

    def __init__(
        self,
        worker_id: str,
        jobs: Mapping[str, Held],
        pool: PagePool,
        engine: DecodeEngine,
        copier: Copier,
        say: Callable[[Model], None],
        free: Callable[[str], None],
        fail: Callable[[str, PackhorseError], None],
    ) -> None:
        self._worker_id, self._jobs = worker_id, jobs
        self._pool, self._engine, self._copier = pool, engine, copier
        self._say, self._free, self._fail = say, free, fail

    def preempt(self, message: Preempt) -> None:
        """A job that neither runs nor pauses is left alone: it has ended, and word of that is on its way."""
        held = self._jobs.get(message.job_id)
        if held is not None and held.state in (State.RUNNING, State.PAUSED):
            held.state = State.STOPPING
            held.moving = self._start(held, self._leave(held, message))

    def resume(self, job_id: str) -> None:
        """A paused job runs on; one that is out comes back before. Others are left alone."""
        held = self._jobs.get(job_id)
        if held is not None and held.state is State.PAUSED and held.sequence is not None:
            held.state = State.RUNNING
            self._engine.add(held.sequence)
        if held is not None and held.state is State.OUT:
            held.state = State.RETURNING
            held.moving = self._start(held, self._move_back(held))

    def _start(self, held: Held, move: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(self._guarded(held, move))

    async def _guarded(self, held: Held, move: Coroutine[None, None, None]) -> None:
        try:
            await move
        except PackhorseError as error:
            self._fail(held.job.job_id, error)
        except RuntimeError as error:  # torch: out of memory, on either side
            self._fail(held.job.job_id, PackhorseError(f"the pages of job {held.job.job_id} cannot be moved: {error}"))

    async def _leave(self, held: Held, message: Preempt) -> None:
        await self._engine.drop(message.job_id)
        sequence = held.sequence
        if held.state is not State.STOPPING or self._jobs.get(message.job_id) is not held or sequence is None:
            return
        sequence.stats = sequence.stats.model_copy(update={"preemptions": sequence.stats.preemptions + 1})
        if message.drop:
            self._drop(sequence, message.number)
        else:
            await self._move_out(held, sequence, message.number)

    def _drop(self, sequence: DecodeSequence, number: int) -> None:
        job_id, replay = sequence.job.job_id, Replay(tokens=tuple(sequence.sampler.generated), stats=sequence.stats)
        self._free(job_id)
        self._say(Preempted(job_id=job_id, worker_id=self._worker_id, number=number, replay=replay))

    async def _move_out(self, held: Held, sequence: DecodeSequence, number: int) -> None:
        job_id = held.job.job_id
        reservation = self._pool.leave(job_id)
        closed = self._pool.fmt.num_pages(sequence.num_tokens)
        copy, seconds = await self._copier.out(reservation.slots[:closed], reservation.row)
        if held.state is not State.STOPPING:
            return
        self._pool.left(job_id)
        held.copy, held.state = copy, State.OUT
        self._say(
            Preempted(
                job_id=job_id,
                worker_id=self._worker_id,
                number=number,
                moved_bytes=copy.num_bytes,
                move_seconds=seconds,
            )
        )

    async def _move_back(self, held: Held) -> None:
        job_id, copy, sequence = held.job.job_id, held.copy, held.sequence
        assert copy is not None
        assert sequence is not None
        reservation = self._pool.come_back(job_id)
        closed = self._pool.fmt.num_pages(sequence.num_tokens)
        await self._copier.back(copy, reservation.slots[:closed], reservation.row)
        if held.state is not State.RETURNING:
            return
        self._pool.came_back(job_id)
        sequence.reservation, held.copy, held.state = reservation, None, State.RUNNING
        self._engine.add(sequence)
        self._say(Resumed(job_id=job_id, worker_id=self._worker_id))
