"""The control plane: one ROUTER at the scheduler, one DEALER at every worker and gateway, messages of transport.messages.

A message is one frame. Whatever a peer sends that is no message is logged and dropped. Sends never wait on a peer: one that is
gone or does not read costs its own messages, and the caller is told. A peer that comes back under its old identity takes
over from its former self (ROUTER_HANDOVER). `WorkerAgent` keeps a worker registered; beyond that this file does not know what
the messages mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Self

import zmq

from packhorse.errors import ConfigError, FrameError, HandshakeError, PackhorseError, UnavailableError
from transport.messages import (
    ErrorInfo,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    Model,
    Register,
    Registered,
    Rejected,
    Reserve,
    StartPrefill,
    WorkerFailed,
    WorkerInfo,
    WorkerLoad,
    decode,
    encode,
)
from transport.sockets import Plug

log = logging.getLogger(__name__)

MAX_IDENTITY_BYTES = 255
RETRY_SECONDS = 0.05
REGISTER_SECONDS = 1.0


class ControlServer:
    """The scheduler's end. Peers are known by their identity."""

    def __init__(self, bind: str, secret: bytes | None = None) -> None:
        self.address = bind
        self._bind = bind
        self._secret = secret
        self._plug: Plug | None = None

    async def start(self) -> None:
        """Binds; from then on `.address` has the real port. Raises ConfigError."""
        plug = Plug(zmq.ROUTER, self._secret)
        plug.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        plug.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.address = await plug.bind(self._bind)
        self._plug = plug

    async def stop(self) -> None:
        """Idempotent."""
        if self._plug is not None:
            await self._plug.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def receive(self) -> tuple[bytes, Any]:
        """The next well-formed message and who sent it. Raises LinkClosedError once stopped."""
        while True:
            peer, *frames = await self._open().receive()
            try:
                return peer, _message(frames)
            except FrameError as error:
                log.warning("dropped what %s sent: %s", peer.decode(errors="replace"), error)

    async def send(self, peer: bytes, message: Model) -> bool:
        """Queues `message`; False, and it is dropped, when `peer` is not connected or reads nothing. FrameError: too large."""
        sent = self._open().send_now([peer, encode(message)])
        if not sent:
            log.warning("dropped %s: %s is gone", type(message).__name__, peer.decode(errors="replace"))
        return sent

    def _open(self) -> Plug:
        assert self._plug is not None, "start() comes first"
        return self._plug


class ControlClient:
    """A worker's or gateway's end; connects on construction, in the background, and reconnects by itself.

    `identity` is unique among the scheduler's peers. `disconnected` is called when an established connection breaks: messages
    of either direction may be lost. `refused` gets a HandshakeError if the scheduler does not share our secret; attempts go on.
    Needs a running event loop. Raises ConfigError on a malformed address or identity.
    """

    def __init__(
        self,
        address: str,
        identity: str,
        secret: bytes | None = None,
        disconnected: Callable[[], None] | None = None,
        refused: Callable[[HandshakeError], None] | None = None,
    ) -> None:
        name = identity.encode()
        if not 0 < len(name) <= MAX_IDENTITY_BYTES or name[0] == 0:
            raise ConfigError(f"identity {identity!r} has {len(name)} bytes; it needs 1 to {MAX_IDENTITY_BYTES}")
        self.address = address
        self._disconnected = disconnected
        self._on_refused = refused
        self._plug = Plug(zmq.DEALER, secret)
        self._plug.socket.setsockopt(zmq.IDENTITY, name)
        self._plug.connect(address, self._watch, refused=self._refused)

    async def send(self, message: Model, timeout_seconds: float = 5.0) -> None:
        """Waits for a connection, no longer than `timeout_seconds`; then raises UnavailableError. FrameError: too large."""
        data = encode(message)
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        while not self._plug.send_now([data]):
            if asyncio.get_running_loop().time() >= deadline:
                raise UnavailableError(f"no connection to the scheduler at {self.address} for {timeout_seconds:g} s")
            await asyncio.sleep(RETRY_SECONDS)

    def send_now(self, message: Model) -> bool:
        """Without waiting; False, and it is dropped, while there is no connection. FrameError: too large."""
        return self._plug.send_now([encode(message)])

    async def receive(self) -> Any:
        """The next well-formed message; waits without limit. Raises LinkClosedError once closed."""
        while True:
            frames = await self._plug.receive()
            try:
                return _message(frames)
            except FrameError as error:
                log.warning("dropped what the scheduler at %s sent: %s", self.address, error)

    async def close(self) -> None:
        """Idempotent; gives queued messages a moment to leave."""
        await self._plug.close()

    def _watch(self, connected: bool) -> None:
        if not connected:
            log.info("the connection to the scheduler at %s broke", self.address)
            if self._disconnected is not None:
                self._disconnected()

    def _refused(self) -> None:
        error = HandshakeError(
            f"the scheduler at {self.address} does not share our secret (PACKHORSE_SECRET), or does not speak ZeroMQ"
        )
        log.error("%s", error)
        if self._on_refused is not None:
            self._on_refused(error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class WorkerAgent:
    """A worker's side of the control plane: registers, heartbeats, and registers again whenever the scheduler may have forgotten it.

    `handle` gets every message that is not the agent's own, one after the other and in order; it may return an awaitable. When it
    raises on a Reserve or a StartPrefill the agent answers WorkerFailed; the worker must then hold nothing of that job.
    `lost` means: drop every job and whatever it holds, the scheduler has failed them all. It is called once per loss: on a broken
    connection, a scheduler with a new epoch, one that says it does not know us, or one silent for longer than it promised.
    `load` is asked at every heartbeat. All of them run on the event loop and must not block it.
    """

    def __init__(
        self,
        address: str,
        info: WorkerInfo,
        handle: Callable[[Any], Awaitable[None] | None],
        load: Callable[[], WorkerLoad],
        lost: Callable[[], None],
        secret: bytes | None = None,
    ) -> None:
        self.info = info
        self.address = address
        self._handle, self._load, self._lost, self._secret = handle, load, lost, secret
        self._client: ControlClient | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._registered: Registered | None = None
        self._answered: asyncio.Future[None] | None = None  # the first answer to Register
        self._unanswered_since: float | None = None  # loop time of the first heartbeat that nothing followed
        self._wake = asyncio.Event()

    @property
    def registered(self) -> bool:
        """Whether the scheduler knows this worker, as far as the worker can tell."""
        return self._registered is not None

    async def start(self, timeout_seconds: float = 10.0) -> None:
        """Returns once registered. Raises the error of a Rejected, HandshakeError (wrong secret), ConfigError.

        Raises UnavailableError after `timeout_seconds`.
        """
        answered = self._answered = asyncio.get_running_loop().create_future()
        self._client = ControlClient(
            self.address, self.info.worker_id, self._secret, disconnected=self._forget, refused=self._refused
        )
        loops = {"receive": self._receive_loop(), "handle": self._handle_loop(), "heartbeat": self._heartbeat_loop()}
        self._tasks = [asyncio.create_task(loop, name=f"agent {name}") for name, loop in loops.items()]
        for task in self._tasks:
            task.add_done_callback(_log_death)
        try:
            async with asyncio.timeout(timeout_seconds):
                await answered
        except TimeoutError:
            await self.stop()
            raise UnavailableError(f"no scheduler answered at {self.address} within {timeout_seconds:g} s") from None
        except BaseException:
            await self.stop()
            raise

    def send(self, message: Model) -> None:
        """Without waiting. Dropped when not registered: the scheduler knows nothing of the job then. FrameError: too large."""
        if self._registered is None or self._client is None:
            log.info("dropped %s: %s is not registered", type(message).__name__, self.info.worker_id)
        elif not self._client.send_now(message):
            log.warning("the scheduler takes no messages from %s: its jobs are given up", self.info.worker_id)
            asyncio.get_running_loop().call_soon(self._forget)

    async def stop(self) -> None:
        """Idempotent. Says Goodbye and closes; `lost` is not called."""
        client, self._client = self._client, None
        if client is None:
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._registered is not None:
            client.send_now(Goodbye(worker_id=self.info.worker_id))
            self._registered = None
        await client.close()

    def _refused(self, error: HandshakeError) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)

    def _forget(self) -> None:
        """The scheduler holds nothing of us any more, or soon will not: drop the jobs, register anew."""
        if self._registered is None or self._client is None:
            return
        log.warning("%s lost the scheduler at %s; registering anew", self.info.worker_id, self.address)
        self._registered = None
        self._drop_jobs()
        self._wake.set()

    def _drop_jobs(self) -> None:
        while not self._inbox.empty():
            self._inbox.get_nowait()
        try:
            self._lost()
        except Exception:  # a protocol edge: the agent outlives its callbacks
            log.exception("dropping the jobs of %s failed", self.info.worker_id)

    async def _receive_loop(self) -> None:
        client = self._client
        assert client is not None
        while True:
            message = await client.receive()
            self._unanswered_since = None
            match message:
                case Registered():
                    self._on_registered(message)
                case Rejected():
                    self._on_rejected(message)
                case HeartbeatAck():
                    known = self._registered
                    if known is not None and (message.epoch != known.epoch or not message.known):
                        self._forget()
                case _ if self._registered is not None:
                    self._inbox.put_nowait(message)
                case _:
                    log.info("dropped %s: %s is not registered", type(message).__name__, self.info.worker_id)

    def _on_registered(self, message: Registered) -> None:
        again = self._registered is not None  # a second Register of ours reached it: it counts us as empty
        self._registered = message
        if again:
            self._drop_jobs()
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)
        log.info("%s is registered at %s", self.info.worker_id, self.address)
        self._wake.set()

    def _on_rejected(self, message: Rejected) -> None:
        error = message.error.error()
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)
        else:
            self._forget()
            log.error("the scheduler at %s refuses %s: %s", self.address, self.info.worker_id, error)

    async def _heartbeat_loop(self) -> None:
        client = self._client
        assert client is not None
        while True:
            self._wake.clear()
            if self._registered is not None:
                await self._beat(client, self._registered)
            elif client.send_now(Register(worker=self.info)):
                await self._sleep(REGISTER_SECONDS)
            else:
                await self._sleep(RETRY_SECONDS)

    async def _beat(self, client: ControlClient, known: Registered) -> None:
        """A pause, then a heartbeat. A silent scheduler is given up. When we ourselves overslept, who was silent? Its time starts anew."""
        clock = asyncio.get_running_loop().time
        asleep = clock()
        await self._sleep(known.heartbeat_seconds)
        if known is not self._registered:
            return
        if clock() - asleep > 2 * known.heartbeat_seconds + RETRY_SECONDS:
            self._unanswered_since = None
        since = self._unanswered_since
        if since is not None and clock() - since > known.timeout_seconds:
            self._forget()
            return
        client.send_now(Heartbeat(worker_id=self.info.worker_id, load=self._current_load()))
        self._unanswered_since = since or clock()

    def _current_load(self) -> WorkerLoad:
        try:
            return self._load()
        except Exception:  # a protocol edge: the agent outlives its callbacks
            log.exception("the load of %s is unknown", self.info.worker_id)
            return WorkerLoad()

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _handle_loop(self) -> None:
        while True:
            message = await self._inbox.get()
            try:
                result = self._handle(message)
                if inspect.isawaitable(result):
                    await result
            except PackhorseError as error:
                log.warning("%s failed: %s", type(message).__name__, error)
                self._report(message, error)
            except Exception as error:  # a protocol edge: one message, not the worker, fails
                log.exception("%s failed", type(message).__name__)
                self._report(message, PackhorseError(f"{type(error).__name__}: {error}"))

    def _report(self, message: Any, error: PackhorseError) -> None:
        if isinstance(message, Reserve | StartPrefill):
            failed = ErrorInfo.of(error)
            self.send(WorkerFailed(job_id=message.job.job_id, worker_id=self.info.worker_id, error=failed))


def _log_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("%s died", task.get_name(), exc_info=error)


def _message(frames: list[bytes]) -> Any:
    if len(frames) != 1:
        raise FrameError(f"a control message has one frame, not {len(frames)}")
    return decode(frames[0])
