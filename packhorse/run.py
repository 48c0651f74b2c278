"""Runs one component as a process: start, serve, drain, stop. The first SIGINT or SIGTERM drains, the second kills.

Before it serves, the first ends it: neither an import nor a model that loads in a thread can be cancelled, and neither is waited for.
Logging is set up here and nowhere else. It knows the components by name alone and imports one only to run it.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, Protocol, runtime_checkable

from packhorse.config import ProcessConfig
from packhorse.errors import ConfigError, PackhorseError
from packhorse.garbage import calm_collector

STOP_SECONDS = 15.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)
CLASSES = {
    "gateway": ("gateway.process", "Gateway"),
    "scheduler": ("scheduler.process", "Scheduler"),
    "prefill": ("prefill.worker", "PrefillWorker"),
    "decode": ("decode.worker", "DecodeWorker"),
}
log = logging.getLogger(__name__)


class Component(Protocol):
    """What runs in a process. `start` returns once it serves, or leaves nothing open; `stop` drains, then frees everything."""

    def start(self) -> Coroutine[Any, Any, None]: ...

    def stop(self) -> Coroutine[Any, Any, None]: ...


@runtime_checkable
class Watched(Protocol):
    """A component that can end by itself: `wait` returns, or raises, when it cannot serve any more."""

    def wait(self) -> Coroutine[Any, Any, None]: ...


class Interrupted(Exception):
    """A signal came before the component was up."""


def run(name: str, config: ProcessConfig) -> int:
    """Runs component `name` until a signal; returns the exit status. Logs and reports start-up errors in one line."""
    set_up_logging(name, config.log_level)
    try:
        for number in SIGNALS:  # until the loop takes them: nothing is open yet
            signal.signal(number, lambda *_: os._exit(0))
        module, attribute = CLASSES[name]
        return asyncio.run(_run(getattr(importlib.import_module(module), attribute), config))
    except Exception as error:
        print(error_line(error), file=sys.stderr)
        log.debug("the failure in full", exc_info=error)
        return 2 if isinstance(error, ConfigError) else 1


def set_up_logging(process: str, level: str) -> None:
    """One line per record on standard error: time, level, process, logger, message."""
    form = f"%(asctime)s %(levelname)-7s {process} %(name)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=level.upper(), format=form, datefmt="%H:%M:%S", force=True)
    for chatty in ("httpx", "httpcore", "urllib3", "uvicorn.access", "filelock", "asyncio"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))


def error_line(error: BaseException) -> str:
    """One line for people: what Packhorse raised as it is, foreign errors with their class."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = " ".join(str(error).split()) or "no message"
    known = isinstance(error, PackhorseError)
    return f"packhorse: error: {text}" if known else f"packhorse: error: {type(error).__name__}: {text}"


async def _run(kind: Callable[[ProcessConfig], Component], config: ProcessConfig) -> int:
    stopping = _signals()
    component = kind(config)
    try:
        await _until(stopping, component.start())
    except Interrupted:
        _leave_threads()
    calm_collector()
    log.info("ready%s", _address(component))
    try:
        await _until(stopping, component.wait() if isinstance(component, Watched) else _forever())
    except Interrupted:
        log.info("draining and stopping; a second signal kills")
    except BaseException:
        await _stop(component, config)
        raise
    return 0 if await _stop(component, config) else 1


def _leave_threads() -> NoReturn:
    """Ends the process with status 0 without waiting for threads. `start` has freed what it opened."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


async def _stop(component: Component, config: ProcessConfig) -> bool:
    """Whether it stopped well and in time; the reason is logged, so that an earlier error keeps its place."""
    limit_seconds = STOP_SECONDS + getattr(config, "drain_seconds", 0)
    try:
        async with asyncio.timeout(limit_seconds):
            await component.stop()
    except TimeoutError:
        log.error("did not stop in %g seconds", limit_seconds)
        return False
    except Exception:
        log.exception("stopping failed")
        return False
    log.info("stopped")
    return True


async def _forever() -> None:
    await asyncio.get_running_loop().create_future()


async def _until(stopping: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Runs `work` to its end; cancels it and raises Interrupted when a signal comes first."""
    task = asyncio.create_task(work)
    signalled = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({task, signalled}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Interrupted
        await task
    finally:
        for each in (task, signalled):
            each.cancel()
        await asyncio.gather(task, signalled, return_exceptions=True)


def _signals() -> asyncio.Event:
    """An event that the first SIGINT or SIGTERM sets. The second ends the process at once, with status 128 + signal."""
    stopping = asyncio.Event()

    def received(number: signal.Signals) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, received, number)
    return stopping


def _address(component: Component) -> str:
    address = getattr(component, "url", None) or getattr(component, "address", None)
    return f" at {address}" if address else ""
