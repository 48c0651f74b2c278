"""The prefill worker process: takes jobs from the scheduler, runs them, ships their pages, hands token 1 to the gateway.

One task per job carries it from StartPrefill to PrefillDone; releasing a job is cancelling its task. Pages are held
(the lease) until the decode side acknowledges the stream.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from model.worker import STOP_SECONDS, Worker
from packhorse.config import PrefillConfig
from packhorse.errors import JobCancelledError, PackhorseError, RequestError
from prefill.engine import FirstToken, PrefillEngine
from transport.messages import (
    JobStats,
    PrefillDone,
    StartPrefill,
    StreamEnd,
    TokenOutput,
    WorkerInfo,
    WorkerLoad,
)
from transport.payload_sizes import page_layer_bytes
from transport.streams import PageSender, SendStream

log = logging.getLogger(__name__)

ACK_SECONDS = 300.0
_RAW_VALUE_BYTES = 2  # bf16


class PrefillWorker(Worker):
    role = "prefill"
    config: PrefillConfig

    def __init__(self, config: PrefillConfig) -> None:
        super().__init__(config)
        self._engine: PrefillEngine | None = None
        self._senders: dict[str, PageSender] = {}
        self._connecting: dict[str, asyncio.Lock] = {}
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._reply_to: dict[str, str] = {}
        self._leases: dict[str, SendStream] = {}
        self._lease_ended = asyncio.Event()
        self._bytes_shipped = 0

    async def _open(self) -> WorkerInfo:
        self._engine = PrefillEngine(self.model, self.fmt, self.tokenizer, self.config.chunk_tokens)
        return self.info(max_jobs=self.config.max_jobs)

    async def _close(self) -> None:
        for sender in self._senders.values():
            await sender.close()
        self._senders.clear()
        if self._engine is not None:
            await self._engine.stop(STOP_SECONDS)
            self._engine = None

    def load(self) -> WorkerLoad:
        return WorkerLoad(
            jobs=len(self._jobs),
            leases=len(self._leases),
            lease_bytes=self._pending_bytes(),
            links=sum(not sender.closed for sender in self._senders.values()),
            bytes_shipped=self._bytes_shipped,
            link_bytes_per_second=max((s.bytes_per_second for s in self._senders.values()), default=0.0),
        )

    async def receive(self, message: Any) -> None:
        if not isinstance(message, StartPrefill):
            log.warning("a prefill worker has no use for %s", message.kind)
            return
        job_id = message.job.job_id
        if job_id in self._jobs:
            log.warning("job %s is here already; its second start is ignored", job_id)
            return
        self._reply_to[job_id] = message.job.reply_to
        self._jobs[job_id] = task = self.loop.create_task(self._run(message))
        task.add_done_callback(lambda _: self._forget(job_id))

    async def drop(self, job_id: str, error: PackhorseError) -> None:
        task = self._jobs.get(job_id)
        if task is not None:
            task.cancel(error.message)
            await asyncio.wait([task])

    async def drop_all(self) -> None:
        await asyncio.gather(*(self.drop(job_id, JobCancelledError("worker stops")) for job_id in list(self._jobs)))

    def fail_gateway(self, address: str, error: PackhorseError) -> None:
        for job_id in [job_id for job_id, reply_to in self._reply_to.items() if reply_to == address]:
            self._jobs[job_id].cancel(error.message)
            self.failed(job_id, error)

    # ---- one job

    def _forget(self, job_id: str) -> None:
        del self._jobs[job_id], self._reply_to[job_id]

    async def _run(self, start: StartPrefill) -> None:
        """Carries a job to its end; every error goes to the scheduler."""
        try:
            self.check(start.job)
            if start.data_address is None:
                await self._prefill_only(start)
            else:
                await self._prefill_and_ship(start, start.data_address)
        except PackhorseError as error:
            self.failed(start.job.job_id, error)
        except Exception as error:  # protocol edge: the job fails, the worker lives
            log.exception("job %s", start.job.job_id)
            self.failed(start.job.job_id, PackhorseError(f"prefill failed: {error}"))

    async def _prefill_only(self, start: StartPrefill) -> None:
        """A job that cannot outlive token 1: nothing is shipped."""
        assert self._engine is not None
        if start.job.sampling.max_tokens > 1:
            raise RequestError(f"job {start.job.job_id} has max_tokens above 1 and no decode worker")
        first = await self._engine.prefill(start.job, None)
        self._finish(start, first, self._stats(start, first, 0))

    async def _prefill_and_ship(self, start: StartPrefill, address: str) -> None:
        assert self._engine is not None
        await self._lease_room()
        sender = await self._sender(address)
        stream = sender.open(start.job.job_id, start.job.priority)
        self._leases[start.job.job_id] = stream
        try:
            outlet = _StreamOutlet(stream, self.loop)
            first = await self._engine.prefill(start.job, outlet, start.held_pages, start.first_token)
            if first.finish_reason is not None:
                stream.abort(JobCancelledError(f"token 1 ended the job ({first.finish_reason})"))
                self._finish(start, first, self._stats(start, first, stream.bytes_sent))
                return
            stats = self._stats(start, first, first.shipped_bytes)
            output = self._output(start, first, stats)
            if start.first_token is None:
                self.send_tokens(start.job.reply_to, [output])
            shipping = time.monotonic()
            await stream.finish(self._end(start, output, stats), ACK_SECONDS)
            self._bytes_shipped += stats.bytes_shipped
            self._done(start, first, stats.model_copy(update={"ship_seconds": time.monotonic() - shipping}))
        except asyncio.CancelledError as error:
            stream.abort(JobCancelledError(str(error) or "cancelled"))
            raise
        except PackhorseError as error:
            stream.abort(error)
            raise
        finally:
            del self._leases[start.job.job_id]
            self._lease_ended.set()

    async def _lease_room(self) -> None:
        """Waits while unacknowledged pages fill the lease; one job may always go."""
        while self._leases and self._pending_bytes() >= self.config.lease_bytes:
            self._lease_ended.clear()
            await self._lease_ended.wait()

    async def _sender(self, address: str) -> PageSender:
        """The open link to a decode worker, or a new one."""
        async with self._connecting.setdefault(address, asyncio.Lock()):
            sender = self._senders.get(address)
            if sender is not None and not sender.closed:
                return sender
            if sender is not None:
                await sender.close()
            sender = await PageSender.connect(
                address, self.worker_id, self.layout, secret=self.config.secret_bytes, timeout_seconds=10.0
            )
            log.info("page stream to %s open", address)
            self._senders[address] = sender
            return sender

    def _pending_bytes(self) -> int:
        return sum(stream.pending_bytes for stream in self._leases.values())

    # ---- messages

    def _finish(self, start: StartPrefill, first: FirstToken, stats: JobStats) -> None:
        """Token 1 ended the job."""
        self.send_tokens(start.job.reply_to, [self._output(start, first, stats)])
        self._done(start, first, stats)

    def _done(self, start: StartPrefill, first: FirstToken, stats: JobStats) -> None:
        self.agent.send(
            PrefillDone(
                job_id=start.job.job_id, worker_id=self.worker_id, finish_reason=first.finish_reason, stats=stats
            )
        )

    def _stats(self, start: StartPrefill, first: FirstToken, bytes_shipped: int) -> JobStats:
        """`bytes_shipped` of a job that token 1 ended counts the pages that had left before token 1 was known."""
        info, tokens = self.model.info, len(start.job.prompt)
        shipped = first.finish_reason is None
        return JobStats(
            prompt_tokens=tokens,
            completion_tokens=1,
            prefill_worker=self.worker_id,
            decode_worker=start.decode_worker if shipped else "",
            bytes_shipped=bytes_shipped,
            bytes_held=start.held_pages * page_layer_bytes(self.layout) * info.layers if shipped else 0,
            raw_bytes=2 * info.layers * info.kv_heads * info.head_dim * tokens * _RAW_VALUE_BYTES,
            queue_seconds=start.queue_seconds,
            prefill_seconds=first.seconds,
        )

    def _output(self, start: StartPrefill, first: FirstToken, stats: JobStats) -> TokenOutput:
        return TokenOutput(
            job_id=start.job.job_id,
            index=0,
            token_id=first.sampled.token_id,
            logprob=first.sampled.logprob,
            top_logprobs=first.sampled.top_logprobs,
            finish_reason=first.finish_reason,
            stop_string=first.stop_string,
            stats=stats,
        )

    def _end(self, start: StartPrefill, output: TokenOutput, stats: JobStats) -> StreamEnd:
        tokens = len(start.job.prompt)
        return StreamEnd(
            job_id=start.job.job_id,
            prompt_tokens=tokens,
            num_pages=self.fmt.num_pages(tokens),
            first_token=output,
            stats=stats,
        )


class _StreamOutlet:
    """Carries what the engine's thread hands out to the stream, which lives on the loop's."""

    def __init__(self, stream: SendStream, loop: asyncio.AbstractEventLoop) -> None:
        self._stream = stream
        self._loop = loop

    def pages(self, layer: int, first_page: int, num_pages: int, payload: memoryview) -> None:
        self._loop.call_soon_threadsafe(self._stream.put_pages, layer, first_page, payload, num_pages)

    def residual(self, layer: int, num_tokens: int, payload: memoryview) -> None:
        self._loop.call_soon_threadsafe(self._stream.put_residual, layer, num_tokens, payload)
