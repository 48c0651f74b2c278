"""A scheduler and a worker on the control plane that answer by rote and remember what they heard."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from tests.waiting import PATIENCE_SECONDS
from transport.control import ControlServer, WorkerAgent
from transport.messages import (
    ErrorInfo,
    Heartbeat,
    HeartbeatAck,
    Job,
    KVLayout,
    Register,
    Registered,
    Rejected,
    Sampling,
    WorkerInfo,
    WorkerLoad,
)

LOCAL = "tcp://127.0.0.1:0"
LAYOUT = KVLayout(
    model="m", revision="r", layers=2, kv_heads=1, head_dim=8, dtype="float32", kv_format="raw",
    page_tokens=64, sink_tokens=4, page_bytes=4096, layout_version=1,
)  # fmt: skip
INFO = WorkerInfo(
    worker_id="decode-1", role="decode", layout=LAYOUT, max_context_tokens=512, max_jobs=4, capacity_pages=16
)
JOB = Job(job_id="job-1", prompt=(1, 2), sampling=Sampling(max_tokens=4, seed=0), reply_to="tcp://127.0.0.1:1")


class FakeScheduler:
    """Answers Register and Heartbeat; remembers everything else."""

    def __init__(self, bind: str = LOCAL, *, epoch: str = "epoch-1", timeout_seconds: float = 5.0) -> None:
        self.server = ControlServer(bind)
        self.epoch, self.timeout_seconds = epoch, timeout_seconds
        self.rejected: ErrorInfo | None = None
        self.known = True
        self.deaf = False
        self.registers = 0
        self.heard: list[Any] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakeScheduler]:
        async with self.server:
            task = asyncio.create_task(self._serve())
            try:
                yield self
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _serve(self) -> None:
        while True:
            peer, message = await self.server.receive()
            if self.deaf:
                continue
            if isinstance(message, Register):
                self.registers += 1
                self.known = True
                answer = Rejected(error=self.rejected) if self.rejected else self.registered()
                await self.server.send(peer, answer)
            elif isinstance(message, Heartbeat):
                await self.server.send(peer, HeartbeatAck(epoch=self.epoch, known=self.known))
            else:
                self.heard.append(message)

    def registered(self) -> Registered:
        return Registered(epoch=self.epoch, heartbeat_seconds=0.05, timeout_seconds=self.timeout_seconds)


class FakeWorker:
    """What an agent calls back."""

    def __init__(self, address: str) -> None:
        self.handled: list[Any] = []
        self.num_lost = 0
        self.error: Exception | None = None
        self.agent = WorkerAgent(address, INFO, self.handle, lambda: WorkerLoad(jobs=1), self.lost)

    def handle(self, message: Any) -> None:
        self.handled.append(message)
        if self.error is not None:
            raise self.error

    def lost(self) -> None:
        self.num_lost += 1

    async def __aenter__(self) -> FakeWorker:
        await self.agent.start(PATIENCE_SECONDS)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.agent.stop()
