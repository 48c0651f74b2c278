"""UCX under asyncio: one worker per event loop, progressed when its event descriptor is readable, never by spinning.

ucxx brings an asyncio layer of its own. This uses its core objects (`ucxx.libucxx`) instead, since that layer spins or
needs a thread with a CUDA context, binds every interface, and keeps its worker for good. This file knows nothing of frames.
"""

from __future__ import annotations

import asyncio
import os
import types
import warnings
from collections.abc import Callable
from typing import Any

from packhorse.errors import ConfigError, LinkClosedError

_SAFETY_SECONDS = 0.02  # progress at least this often while requests are pending: some transports miss a wake-up
_engines: dict[asyncio.AbstractEventLoop, UcxEngine] = {}


def load_ucxx() -> types.ModuleType:
    """The ucxx package. Raises ConfigError naming the extra that installs it."""
    os.environ.setdefault(
        "UCX_WARN_UNUSED_ENV_VARS", "n"
    )  # ucxx sets variables that UCX builds without CUDA do not know
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(ucxx|rmm|cuda)\b")
            import ucxx
    except (ImportError, OSError) as error:
        raise ConfigError(f"the ucx link needs the package ucxx: pip install 'packhorse[ucx]' ({error})") from error
    module: types.ModuleType = ucxx
    return module


def _options() -> dict[str, str]:
    """UCX leaves shared memory out for endpoints that must notice a dead peer, as ours must, unless it is told otherwise."""
    return {} if "UCX_MM_ERROR_HANDLING" in os.environ else {"MM_ERROR_HANDLING": "y"}


class UcxEngine:
    """The UCX context and worker of one event loop, shared by its links; `acquire` and `release` count the users."""

    def __init__(self) -> None:
        ucx = load_ucxx().libucxx
        self.errors: tuple[type[Exception], ...] = (ucx.UCXError, ucx.UCXCanceled)
        self._ucx = ucx
        self._users = 0
        self._pending: dict[Any, tuple[asyncio.Future[None], memoryview]] = {}  # the view keeps its memory alive
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._context = ucx.UCXContext(_options(), feature_flags=(ucx.Feature.TAG, ucx.Feature.WAKEUP))
        self._worker = ucx.UCXWorker(self._context)
        self._worker.init_blocking_progress_mode()
        self._descriptor: int = self._worker.epoll_file_descriptor
        self._loop.add_reader(self._descriptor, self._progress)

    @classmethod
    def acquire(cls) -> UcxEngine:
        """The running loop's engine. Raises ConfigError without ucxx."""
        loop = asyncio.get_running_loop()
        engine = _engines.get(loop)
        if engine is None:
            engine = _engines[loop] = cls()
        engine._users += 1
        return engine

    def release(self) -> None:
        self._users -= 1
        if self._users:
            return
        del _engines[self._loop]
        self._loop.remove_reader(self._descriptor)
        if self._timer is not None:
            self._timer.cancel()
        self._worker.cancel_inflight_requests()
        self._worker.progress()
        self._settle()
        self._pending.clear()
        self._worker = self._context = None

    @property
    def address(self) -> bytes:
        """Where a peer's `connect` finds this worker."""
        return bytes(self._worker.address)

    def connect(self, address: bytes) -> Any:
        """An endpoint to the worker at `address`. Raises LinkClosedError."""
        try:
            peer = self._ucx.UCXAddress.create_from_buffer(address)
            return self._ucx.UCXEndpoint.create_from_worker_address(self._worker, peer, True)
        except self.errors as error:
            raise LinkClosedError(f"UCX cannot reach the peer: {error!r}") from error

    def disconnect(self, endpoint: Any) -> None:
        """Drops `endpoint`; its pending transfers fail."""
        endpoint.close_blocking()
        self._progress()

    def send(self, endpoint: Any, view: memoryview, tag: int) -> asyncio.Future[None]:
        """Done when `view` may be reused; fails with LinkClosedError."""
        return self._track(endpoint.tag_send, view, tag)

    def receive(self, endpoint: Any, view: memoryview, tag: int) -> asyncio.Future[None]:
        """Done when a message with `tag` has filled `view`; fails with LinkClosedError, also where it is longer."""
        return self._track(endpoint.tag_recv, view, tag)

    def _track(self, start: Callable[[Any, Any], Any], view: memoryview, tag: int) -> asyncio.Future[None]:
        try:
            request = start(_array(view), self._ucx.UCXXTag(tag))
        except self.errors as error:
            raise LinkClosedError(f"UCX: {error!r}") from error
        done: asyncio.Future[None] = self._loop.create_future()
        self._pending[request] = done, view
        self._progress()
        return done

    def _progress(self) -> None:
        if self._worker is None:
            return
        self._worker.progress()
        while not self._worker.arm():
            self._worker.progress()
        self._settle()
        if self._timer is None and self._pending:
            self._timer = self._loop.call_later(_SAFETY_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._progress()

    def _settle(self) -> None:
        for request in [request for request in self._pending if request.completed]:
            done, _ = self._pending.pop(request)
            try:
                request.check_error()
            except self.errors as error:
                if not done.done():
                    done.set_exception(LinkClosedError(f"UCX: {error!r}"))
            else:
                if not done.done():
                    done.set_result(None)


def _array(view: memoryview) -> Any:
    from ucxx._lib.arr import Array

    return Array(view)
