"""What prefill and decode workers have in common: the model, its page format, the control plane, the token plane.

A worker is an asyncio shell around an engine that computes on its own thread. Subclasses say what they do with the
scheduler's messages. It knows nothing of pages in flight, pools or batches.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Self

import torch

from hack_kernels.backend import choose
from hack_kernels.page_format import PageFormat
from model.adapter import Model
from model.layout import kv_layout
from model.loader import load_model
from model.text import Tokenizer, load_tokenizer
from packhorse.config import WorkerConfig, default_worker_id
from packhorse.errors import ConfigError, JobCancelledError, PackhorseError
from transport.control import WorkerAgent
from transport.messages import (
    ErrorInfo,
    Job,
    KVLayout,
    Release,
    Released,
    Role,
    TokenOutput,
    Tokens,
    WorkerFailed,
    WorkerInfo,
    WorkerLoad,
)
from transport.tokens import TokenSender

log = logging.getLogger(__name__)

START_SECONDS = 60.0
STOP_SECONDS = 30.0


class Worker:
    """One worker process. `start` returns once the scheduler has accepted it; `stop` leaves nothing open."""

    role: Role
    model: Model
    fmt: PageFormat
    layout: KVLayout
    tokenizer: Tokenizer
    agent: WorkerAgent

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.worker_id = config.worker_id or default_worker_id(self.role)
        self.loop: asyncio.AbstractEventLoop
        self.tokens = TokenSender(overflow=self._overflow, secret=config.secret_bytes)
        self._handling: set[asyncio.Task[None]] = set()
        self._dropping: asyncio.Task[None] | None = None  # of every job, since the scheduler had forgotten them

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Loads the model, opens the data plane, registers. Raises ConfigError, UnsupportedModelError, HandshakeError."""
        self.loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self._load)
            info = await self._open()
            self.agent = WorkerAgent(
                self.config.scheduler,
                info,
                handle=self._handle,
                load=self.load,
                lost=self._lost,
                secret=self.config.secret_bytes,
            )
            await self.agent.start(START_SECONDS)
        except BaseException:
            await self._close()
            await self.tokens.close()
            raise

    async def stop(self) -> None:
        """Says goodbye, drops every job, closes everything. Idempotent."""
        await self.agent.stop()
        await self.drop_all()
        for task in list(self._handling):
            task.cancel()
        await asyncio.gather(*self._handling, return_exceptions=True)
        await self._close()
        await self.tokens.close()

    # ---- what a subclass provides

    async def _open(self) -> WorkerInfo:
        """Starts the engine and the data plane."""
        raise NotImplementedError

    async def _close(self) -> None:
        """Closes what `_open` opened, as far as it came."""
        raise NotImplementedError

    async def receive(self, message: Any) -> None:
        """A message of the scheduler's, other than Release."""
        raise NotImplementedError

    async def drop(self, job_id: str, error: PackhorseError) -> None:
        """Gives up a job in whatever state it is; returns when it holds nothing here. Unknown jobs are fine."""
        raise NotImplementedError

    async def drop_all(self) -> None:
        raise NotImplementedError

    def load(self) -> WorkerLoad:
        raise NotImplementedError

    def fail_gateway(self, address: str, error: PackhorseError) -> None:
        """Fails every job that answers to the gateway at `address`."""
        raise NotImplementedError

    # ---- shared

    def info(self, **fields: Any) -> WorkerInfo:
        return WorkerInfo(
            worker_id=self.worker_id,
            role=self.role,
            layout=self.layout,
            max_context_tokens=self.model.info.max_context_tokens,
            link=self.config.link,
            backend=choose(str(self.model.info.device)).name,
            device=device_name(self.model.info.device),
            sizes=self.model.sizes,
            nic_gbps=self.config.nic_gbps,
            **fields,
        )

    def check(self, job: Job) -> None:
        """Raises PackhorseError for a job that this model cannot run; the gateway has checked the same."""
        highest = max(job.prompt)
        if min(job.prompt) < 0 or highest >= self.model.info.vocab_size:
            raise PackhorseError(f"job {job.job_id}: token {highest} is not in 0..{self.model.info.vocab_size - 1}")
        total, most = len(job.prompt) + job.sampling.max_tokens, self.model.info.max_context_tokens
        if total > most:
            raise PackhorseError(f"job {job.job_id}: {total} tokens do not fit the model's context of {most}")

    def failed(self, job_id: str, error: PackhorseError) -> None:
        """Tells the scheduler that a job failed and holds nothing here."""
        log.warning("job %s failed: %s", job_id, error.message)
        self.agent.send(WorkerFailed(job_id=job_id, worker_id=self.worker_id, error=ErrorInfo.of(error)))

    def send_tokens(self, reply_to: str, outputs: list[TokenOutput]) -> None:
        self.tokens.send(reply_to, Tokens(worker_id=self.worker_id, outputs=tuple(outputs)))

    def _load(self) -> None:
        config = self.config
        if config.threads:
            torch.set_num_threads(config.threads)
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_model(config.model, dtype=config.dtype, device=device)
        info = self.model.info
        try:
            self.fmt = PageFormat.parse(config.kv_format, info.head_dim, info.dtype)
        except ValueError as error:
            raise ConfigError(f"kv_format={config.kv_format!r} with model {info.name}: {error}") from error
        self.layout = kv_layout(info, self.fmt)
        self.tokenizer = load_tokenizer(config.model)
        backend = choose(device)
        log.info("kernels: %s (%s); KV format %s, %s", backend.name, backend.reason, self.fmt.name, info.dtype)

    async def _handle(self, message: Any) -> None:
        if isinstance(message, Release):
            task = self.loop.create_task(self._release(message))
            self._handling.add(task)
            task.add_done_callback(self._handling.discard)
        elif await self._is_empty():
            await self.receive(message)

    async def _is_empty(self) -> bool:
        """Waits until jobs of an earlier registration hold nothing: the scheduler counts on their room. False: it has forgotten us anew."""
        dropping = self._dropping
        if dropping is not None and not dropping.done():
            await asyncio.wait([dropping])
        return dropping is self._dropping

    async def _release(self, message: Release) -> None:
        await self.drop(message.job_id, JobCancelledError(message.reason))
        self.agent.send(Released(job_id=message.job_id, worker_id=self.worker_id))

    def _lost(self) -> None:
        """The scheduler restarted or is silent: it will never release what we hold."""
        log.warning("the scheduler forgot this worker: dropping every job")
        task = self._dropping = self.loop.create_task(self.drop_all())
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)

    def _overflow(self, address: str) -> None:
        self.fail_gateway(address, PackhorseError(f"the gateway at {address} does not take its tokens"))


def device_name(device: torch.device) -> str:
    """The GPU's name as its driver has it; of anything else its type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
