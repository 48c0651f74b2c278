"""The scheduler as a process: a socket, a clock and three loops around SchedulerCore."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from typing import Self

from packhorse.config import SchedulerConfig
from packhorse.errors import ConfigError, FrameError, LinkClosedError
from scheduler.core import Outgoing, SchedulerCore
from transport.control import ControlServer
from transport.messages import Model

log = logging.getLogger(__name__)

TICK_SECONDS = 0.1
LEARN_SECONDS = 0.02  # of every tick at most; on another thread
SAVE_SECONDS = 60.0


class Scheduler:
    """`async with Scheduler(config)`: serves from `start` to `stop`; `.address` is where it is bound."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.core = SchedulerCore(config, epoch=uuid.uuid4().hex)
        self._server = ControlServer(config.bind, config.secret_bytes)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def address(self) -> str:
        return self._server.address

    async def start(self) -> None:
        """Binds and serves. Raises ConfigError: the address is taken, or public without a secret; the predictor's file is not writable."""
        await asyncio.to_thread(self.core.experience.save)
        await self._server.start()
        self._tasks = [
            asyncio.create_task(self._receive_loop(), name="scheduler receive"),
            asyncio.create_task(self._tick_loop(), name="scheduler tick"),
            asyncio.create_task(self._learn_loop(), name="scheduler learn"),
        ]
        names = (self.config.policy, self.config.placement, self.config.predictor)
        log.info("scheduler at %s: policy %s, placement %s, predictor %s", self.address, *names)

    async def stop(self) -> None:
        """Fails what is under way with UnavailableError, saves what was learned, then closes. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks:
            await self._send(self.core.shut_down(time.monotonic()))
            await self._learn()
            await self._save()
        await self._server.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _receive_loop(self) -> None:
        while True:
            try:
                peer, message = await self._server.receive()
                await self._send(self._handled(peer, message))
            except LinkClosedError:
                return
            except Exception:  # the process's top loop
                log.exception("a message could not be taken, or its answer not be sent")

    def _handled(self, peer: bytes, message: Model) -> list[Outgoing]:
        try:
            return self.core.handle(peer, message, time.monotonic())
        except Exception:  # the process's top loop: one message, not the scheduler, fails
            log.exception("%s of %s could not be handled", type(message).__name__, peer.decode(errors="replace"))
            return self.core.broken(peer, message, time.monotonic())

    async def _tick_loop(self) -> None:
        """After an oversleep (a stopped process, a busy machine) what waits in the socket is heard before anyone is called silent."""
        while True:
            asleep = time.monotonic()
            await asyncio.sleep(TICK_SECONDS)
            if time.monotonic() - asleep > self.config.worker_timeout_seconds / 2:
                log.warning("the scheduler overslept by %.1f s", time.monotonic() - asleep - TICK_SECONDS)
                continue
            try:
                await self._send(self.core.tick(time.monotonic()))
            except Exception:  # the process's top loop
                log.exception("a tick failed")

    async def _learn_loop(self) -> None:
        """A thread learns from jobs that have ended, and at times writes down what, while this one goes on placing."""
        saved_at = time.monotonic()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            await self._learn()
            if time.monotonic() - saved_at >= SAVE_SECONDS:
                saved_at = time.monotonic()
                await self._save()

    async def _learn(self) -> None:
        try:
            await asyncio.to_thread(self.core.experience.learn, LEARN_SECONDS)
        except Exception:  # the process's top loop: what cannot be learned must not stop the scheduler
            log.exception("learning failed")

    async def _save(self) -> None:
        """On another thread. A file that cannot be written now is tried again; nothing else waits for it."""
        try:
            await asyncio.to_thread(self.core.experience.save)
        except ConfigError as error:
            log.error("what was learned is not saved: %s", error)

    async def _send(self, outgoing: list[Outgoing]) -> None:
        """Sends in order; a peer that cannot be reached may change what there is to send."""
        queue = deque(outgoing)
        while queue:
            peer, message = queue.popleft()
            try:
                sent = await self._server.send(peer, message)
            except FrameError as error:
                log.error("not sent: %s", error)
                continue
            if not sent:
                queue += self.core.unreachable(peer, time.monotonic())
