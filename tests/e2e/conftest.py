"""Whole systems in one process: a scheduler, one prefill and decode workers on one event loop, joined by real sockets."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import pytest

from decode.worker import DecodeWorker
from packhorse.config import DecodeConfig, PrefillConfig, SchedulerConfig
from prefill.worker import PrefillWorker
from scheduler.process import Scheduler
from tests.fakes import JobClient


@dataclass
class System:
    scheduler: Scheduler
    prefill: PrefillWorker
    decodes: list[DecodeWorker]
    client: JobClient
    scheduler_stopped: bool = False


MakeSystem = Callable[..., AbstractAsyncContextManager[System]]


@contextlib.asynccontextmanager
async def _system(
    model: str = "embedded",
    *,
    num_decode: int = 1,
    kv_format: str = "k4v2",
    link: str = "inproc",
    secret: str | None = None,
    prefill: dict[str, Any] | None = None,
    decode: dict[str, Any] | None = None,
    scheduler: dict[str, Any] | None = None,
) -> AsyncIterator[System]:
    """Starts everything, and afterwards checks that nothing is held before it stops it."""
    common: dict[str, Any] = {"model": model, "kv_format": kv_format, "link": link, "secret": secret, "threads": 1}
    config = SchedulerConfig(bind="tcp://127.0.0.1:0", secret=secret, **(scheduler or {}))
    async with contextlib.AsyncExitStack() as stack:
        boss = await stack.enter_async_context(Scheduler(config))
        common["scheduler"] = boss.address
        decodes = [
            await stack.enter_async_context(
                DecodeWorker(
                    DecodeConfig(**({"worker_id": name, "pool_pages": 256, **common, **(decode or {})} | bind))
                )
            )
            for name in (f"decode-{i}" for i in range(num_decode))
            for bind in [{"data_bind": f"{name}:0"} if link == "inproc" else {}]
        ]
        worker = await stack.enter_async_context(
            PrefillWorker(PrefillConfig(worker_id="prefill-0", **(common | (prefill or {}))))
        )
        client = await stack.enter_async_context(JobClient(boss.address, config.secret_bytes))
        system = System(boss, worker, decodes, client)
        yield system
        if not system.scheduler_stopped:
            await client.until_idle()


@pytest.fixture
def system(no_tasks: None) -> MakeSystem:
    """A factory: `async with system(kv_format="raw") as s: await s.client.run(prompt)`."""
    return _system
