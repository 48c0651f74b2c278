"""A gateway without HTTP: submits jobs to a live scheduler and gathers what comes back."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Self

from packhorse.errors import PackhorseError
from tests.waiting import PATIENCE_SECONDS
from transport.control import ControlClient
from transport.messages import (
    Cancel,
    Job,
    JobEnded,
    JobFailed,
    JobStats,
    Placed,
    Sampling,
    Status,
    StatusRequest,
    Submit,
    TokenOutput,
)
from transport.tokens import TokenReceiver

_numbers = itertools.count()


class JobClient:
    """`async with JobClient(control_address) as client: outputs = await client.run(prompt, max_tokens=8)`."""

    def __init__(self, scheduler: str, secret: bytes | None = None) -> None:
        self._control = ControlClient(scheduler, f"test-gateway-{next(_numbers)}", secret)
        self._receiver = TokenReceiver("tcp://127.0.0.1:0", secret)
        self.outputs: dict[str, list[TokenOutput]] = defaultdict(list)
        self.placed: dict[str, Placed] = {}
        self._ends: dict[str, asyncio.Future[JobStats]] = {}
        self._statuses: asyncio.Queue[Status] = asyncio.Queue()
        self._changed = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._receiver.start()
        loops = (self._control_loop(), self._token_loop(), self._poll_loop())
        self._tasks = [asyncio.create_task(loop) for loop in loops]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._control.close()
        await self._receiver.stop()

    def job(self, prompt: Sequence[int], **sampling: Any) -> Job:
        fields = {"max_tokens": 8, "temperature": 0.0, "seed": 0, "ignore_eos": True} | sampling
        name = f"job-{next(_numbers)}"
        return Job(job_id=name, prompt=tuple(prompt), sampling=Sampling(**fields), reply_to=self._receiver.address)

    async def submit(self, job: Job) -> str:
        self._ends[job.job_id] = asyncio.get_running_loop().create_future()
        await self._control.send(Submit(job=job))
        return job.job_id

    async def end(self, job_id: str, timeout_seconds: float = 2 * PATIENCE_SECONDS) -> JobStats:
        """The job's final statistics. Raises the PackhorseError with which it failed."""
        return await asyncio.wait_for(asyncio.shield(self._ends[job_id]), timeout_seconds)

    async def run(self, prompt: Sequence[int], **sampling: Any) -> list[TokenOutput]:
        """All tokens of one job, in order."""
        job = self.job(prompt, **sampling)
        await self.submit(job)
        await self.end(job.job_id)
        return await self.tokens(job.job_id, complete=True)

    async def tokens(self, job_id: str, at_least: int = 1, complete: bool = False) -> list[TokenOutput]:
        """The job's tokens in order of index, once there are `at_least` of them, or the last one."""

        def ready() -> bool:
            outputs = self.outputs[job_id]
            if complete:
                last = [output.index for output in outputs if output.finish_reason]
                return bool(last) and len(outputs) == last[0] + 1
            return len(outputs) >= at_least

        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(ready), 2 * PATIENCE_SECONDS)
        return sorted(self.outputs[job_id], key=lambda output: output.index)

    async def cancel(self, job_id: str) -> None:
        await self._control.send(Cancel(job_id=job_id, reason="the test leaves"))

    async def status(self) -> Status:
        """A status that was asked for after this call."""
        while not self._statuses.empty():
            self._statuses.get_nowait()
        await self._control.send(StatusRequest())
        return await asyncio.wait_for(self._statuses.get(), PATIENCE_SECONDS)

    async def until_idle(self, timeout_seconds: float = PATIENCE_SECONDS) -> Status:
        """Waits until no worker and no scheduler holds anything of any job; fails with what is left."""
        status = None
        try:
            async with asyncio.timeout(timeout_seconds):
                while status is None or held(status):
                    await asyncio.sleep(0.05)
                    status = await self.status()
        except TimeoutError:
            raise AssertionError(f"still held: {held(status) if status else 'no status'}") from None
        return status

    async def _control_loop(self) -> None:
        while True:
            message = await self._control.receive()
            match message:
                case Placed():
                    self.placed[message.job_id] = message
                case JobEnded():
                    self._ends[message.job_id].set_result(message.stats)
                case JobFailed():
                    self._ends[message.job_id].set_exception(message.error.error())
                case Status():
                    self._statuses.put_nowait(message)

    async def _token_loop(self) -> None:
        while True:
            message = await self._receiver.receive()
            async with self._changed:
                for output in message.outputs:
                    self.outputs[output.job_id].append(output)
                self._changed.notify_all()

    async def _poll_loop(self) -> None:
        """A gateway that asks for nothing is taken for dead."""
        while True:
            await self._control.send(StatusRequest())
            await asyncio.sleep(1.0)


def held(status: Status) -> dict[str, Any]:
    """What is not free in `status`, by where it is; empty when nothing is held."""
    left: dict[str, Any] = {state: count for state, count in status.jobs_by_state.items() if count}
    for worker in status.workers:
        load = worker.load
        counts = {
            "placed": worker.jobs,
            "reserved_pages": worker.reserved_pages,
            "jobs": load.jobs,
            "pages": load.pages_used,
            "residuals": load.residuals_used,
            "leases": load.leases,
            "lease_bytes": load.lease_bytes,
        }
        left |= {f"{worker.info.worker_id}.{name}": count for name, count in counts.items() if count}
    return left


async def error_of(client: JobClient, job_id: str) -> PackhorseError:
    """The error that ends the job; fails when it ends well."""
    try:
        await client.end(job_id)
    except PackhorseError as error:
        return error
    raise AssertionError(f"{job_id} ended well")
