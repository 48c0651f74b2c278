"""The token plane: every worker pushes the tokens of a step straight to each gateway that waits for some.

One PUSH socket per gateway address at the worker, one PULL socket at the gateway, one frame per `Tokens`. A gateway that does
not take its tokens must not hold up the batch, so a send never waits. Tokens are never lost in silence: when the queue to a
gateway is full, or the connection breaks with tokens under way, `overflow(address)` is called and the worker fails the jobs whose
`reply_to` it is. This file knows nothing of jobs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Self

import zmq

from packhorse.errors import ConfigError, FrameError, LinkClosedError
from transport.messages import Tokens, decode, encode
from transport.sockets import Plug

log = logging.getLogger(__name__)

MAX_QUEUED_MESSAGES = 1000
IDLE_SECONDS = 60.0
CONNECT_SECONDS = 10.0


class _Outlet:
    """The way to one gateway, and since when (loop time) it has been unused or without a connection."""

    def __init__(self, now: float, max_queued: int, secret: bytes | None) -> None:
        self.plug = Plug(zmq.PUSH, secret, high_water=max_queued)
        self.used_at = now
        self.down_since: float | None = now


class TokenSender:
    """A worker's end. `overflow(address)` is called, never from inside `send`, when tokens for `address` were or may be lost:
    more than `max_queued` messages wait, the connection broke, or there has been none for `connect_seconds`.

    A way unused for `idle_seconds`, or given up, is closed; the next send opens a new one. Needs a running event loop.
    """

    def __init__(
        self,
        overflow: Callable[[str], None],
        secret: bytes | None = None,
        *,
        max_queued: int = MAX_QUEUED_MESSAGES,
        idle_seconds: float = IDLE_SECONDS,
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        self._overflow, self._secret, self._max_queued = overflow, secret, max_queued
        self._idle_seconds, self._connect_seconds = idle_seconds, connect_seconds
        self._outlets: dict[str, _Outlet] = {}
        self._reaper: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def send(self, address: str, tokens: Tokens) -> None:
        """Queues `tokens` for the gateway at `address` without waiting. Raises LinkClosedError once closed, nothing else."""
        if self._closed:
            raise LinkClosedError("the token sender is closed")
        loop = asyncio.get_running_loop()
        if self._reaper is None:
            self._reaper = asyncio.create_task(self._reap(), name="token reaper")
        try:
            outlet = self._outlets.get(address) or self._open(address)
            outlet.used_at = loop.time()
            if outlet.plug.send_now([encode(tokens)]):
                return
            log.warning("the gateway at %s does not take its tokens: dropped", address)
        except (ConfigError, FrameError) as error:
            log.warning("tokens for the gateway at %s dropped: %s", address, error)
        loop.call_soon(self._overflow, address)

    @property
    def num_outlets(self) -> int:
        """Gateways with an open socket."""
        return len(self._outlets)

    async def close(self) -> None:
        """Idempotent; gives queued tokens a moment to leave."""
        self._closed = True
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.wait([self._reaper])
        outlets, self._outlets = self._outlets, {}
        await asyncio.gather(*(outlet.plug.close() for outlet in outlets.values()), *self._closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _open(self, address: str) -> _Outlet:
        loop = asyncio.get_running_loop()
        outlet = _Outlet(loop.time(), self._max_queued, self._secret)

        def watch(connected: bool) -> None:
            outlet.down_since = None if connected else loop.time()
            if not connected:
                log.info("the connection to the gateway at %s broke; its jobs under way fail", address)
                self._overflow(address)

        outlet.plug.connect(address, watch, queue=True)
        self._outlets[address] = outlet
        return outlet

    async def _reap(self) -> None:
        """Closes what is idle, and gives up what has found no connection."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(self._idle_seconds, self._connect_seconds) / 4)
            now = loop.time()
            for address, outlet in list(self._outlets.items()):
                unreached = outlet.down_since is not None and now - outlet.down_since > self._connect_seconds
                if unreached:
                    log.warning("no connection to the gateway at %s; its tokens are lost", address)
                    self._overflow(address)
                if unreached or now - outlet.used_at > self._idle_seconds:
                    del self._outlets[address]
                    closing = asyncio.create_task(outlet.plug.close(linger_seconds=0 if unreached else None))
                    self._closing.add(closing)
                    closing.add_done_callback(self._closing.discard)


class TokenReceiver:
    """The gateway's end. Frames that are no `Tokens` are logged and dropped."""

    def __init__(self, bind: str, secret: bytes | None = None) -> None:
        self.address = bind
        self._bind, self._secret = bind, secret
        self._plug: Plug | None = None

    async def start(self) -> None:
        """Binds; from then on `.address` has the real port. Raises ConfigError."""
        plug = Plug(zmq.PULL, self._secret)
        self.address = await plug.bind(self._bind)
        self._plug = plug

    async def stop(self) -> None:
        """Idempotent."""
        if self._plug is not None:
            await self._plug.close(linger_seconds=0)

    async def receive(self) -> Tokens:
        """The next tokens of any worker; waits without limit. Raises LinkClosedError once stopped."""
        assert self._plug is not None, "start() comes first"
        while True:
            frames = await self._plug.receive()
            try:
                message = decode(frames[0])
            except FrameError as error:
                log.warning("dropped what came to %s: %s", self.address, error)
                continue
            if isinstance(message, Tokens) and len(frames) == 1:
                return message
            log.warning("dropped what came to %s: not tokens", self.address)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
