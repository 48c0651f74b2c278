"""The decode worker process: holds reservations, takes page streams in, generates, streams tokens to the gateways.

Whatever ends a job (last token, release, failure, lost link) goes through one place that takes it out of the engine before its memory
is free again. Preempted jobs are decode.swaps' matter.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

from decode.batch import DecodeSequence
from decode.copier import Copier
from decode.engine import DecodeEngine, Step
from decode.held import Held, State
from decode.intake import Intake
from decode.means import StepMeans
from decode.pool import PagePool
from decode.scores import NewScores, Scorer
from decode.swaps import Swaps
from model.length_probe import load_length_probe
from model.sampler import SamplerState
from model.text import FinishRule
from model.worker import STOP_SECONDS, Worker
from packhorse.config import DecodeConfig
from packhorse.errors import ConfigError, JobCancelledError, PackhorseError
from transport.messages import (
    Job,
    JobDone,
    JobStats,
    Pages,
    Paused,
    Preempt,
    Reserve,
    Reserved,
    Residual,
    Resume,
    StreamEnd,
    StreamOpen,
    TokenOutput,
    WorkerInfo,
    WorkerLoad,
)
from transport.page_digest import PageDigests
from transport.security import require_secret
from transport.streams import PageReceiver

log = logging.getLogger(__name__)

_RATE_SECONDS = 5.0  # window of the reported tokens per second


class DecodeWorker(Worker):
    role = "decode"
    config: DecodeConfig

    def __init__(self, config: DecodeConfig) -> None:
        super().__init__(config)
        self._engine: DecodeEngine | None = None
        self._copier: Copier | None = None
        self._swaps: Swaps
        self._receiver: PageReceiver | None = None
        self._jobs: dict[str, Held] = {}
        self._steps: list[tuple[float, int]] = []  # (when, tokens) of the last seconds
        self._since_load = StepMeans()
        self._scores = NewScores()
        self._leaving: set[asyncio.Task[None]] = set()

    async def _open(self) -> WorkerInfo:
        info = self.model.info
        slots = self.config.pool_pages or self.config.pool_bytes // PagePool.slot_bytes(info, self.fmt)
        if slots < 1:
            raise ConfigError(
                f"pool_bytes={self.config.pool_bytes} holds no page of {PagePool.slot_bytes(info, self.fmt)} bytes"
            )
        scorer = self._scorer()
        self._pool = PagePool(info, self.fmt, slots, self.config.max_jobs)
        self._engine = DecodeEngine(self.model, self._pool, self._stepped, scorer)
        self._copier = Copier(self._pool.pages, self._pool.residual)
        self._swaps = Swaps(
            self.worker_id,
            self._jobs,
            self._pool,
            self._engine,
            self._copier,
            lambda message: self.agent.send(message),
            self._free,
            self._fail,
        )
        bind = f"{self.config.link}://{self.config.data_bind}"
        require_secret(bind, self.config.secret_bytes)
        self._receiver = await PageReceiver.listen(
            bind, self.worker_id, self.layout, sink=self, secret=self.config.secret_bytes
        )
        address = advertised(self._receiver.address, self.config.advertise)
        log.info("pages arrive at %s; pool of %d pages", address, slots)
        host_pages = self.config.host_bytes // PagePool.slot_bytes(info, self.fmt)
        return self.info(
            max_jobs=self.config.max_jobs, capacity_pages=slots, host_pages=host_pages, data_address=address
        )

    def _scorer(self) -> Scorer | None:
        path = self.config.length_probe
        return Scorer(load_length_probe(Path(path), self.model)) if path is not None else None

    async def _close(self) -> None:
        if self._receiver is not None:
            await self._receiver.close()
            self._receiver = None
        if self._engine is not None:
            await self._engine.stop(STOP_SECONDS)
            self._engine = None
        if self._copier is not None:
            await asyncio.to_thread(self._copier.close)
            self._copier = None

    def load(self) -> WorkerLoad:
        """Says beforehand which prefix pages are held: a hint for placements, so at a heartbeat is soon enough."""
        assert self._receiver is not None
        if (changes := self._pool.prefixes.report.take(self.worker_id)) is not None:
            self.agent.send(changes)
        means, self._since_load = self._since_load, StepMeans()
        return WorkerLoad(
            step_seconds=means.step_seconds,
            step_context_tokens=means.step_context_tokens,
            step_jobs=means.step_jobs,
            generated={job_id: held.sequence.generated for job_id, held in self._jobs.items() if held.sequence},
            scores=self._scores.take(self._jobs),
            jobs=len(self._jobs),
            pages_used=self._pool.used_slots,
            pages_cached=self._pool.cached_slots,
            host_pages_used=self._pool.host_pages_used,
            residuals_used=self._pool.used_rows,
            links=self._receiver.num_links,
            tokens_per_second=self._tokens_per_second(),
        )

    # ---- the scheduler's messages

    async def receive(self, message: Any) -> None:
        match message:
            case Reserve():
                self._reserve(message)
            case Preempt():
                self._swaps.preempt(message)
            case Resume():
                self._swaps.resume(message.job_id)
            case _:
                log.warning("a decode worker has no use for %s", message.kind)

    def _reserve(self, message: Reserve) -> None:
        job = message.job
        try:
            self.check(job)
            reservation = self._pool.reserve(job.job_id, message.pages, self._digests(job))
        except PackhorseError as error:
            self.failed(job.job_id, error)
            return
        self._jobs[job.job_id] = Held(Intake(job, self._pool, reservation), message.replay)
        held_pages = reservation.shared_pages
        self.agent.send(Reserved(job_id=job.job_id, worker_id=self.worker_id, held_pages=held_pages))

    def _digests(self, job: Job) -> tuple[bytes, ...]:
        """Of the prompt pages that the job may share with others."""
        return tuple(PageDigests(job, self.layout)) if self.config.prefix_cache else ()

    def _lost(self) -> None:
        super()._lost()
        self._pool.prefixes.restart_report()

    async def drop(self, job_id: str, error: PackhorseError) -> None:
        held = self._jobs.get(job_id)
        if held is None:
            return
        if held.state is not State.LEAVING:
            await self._leave(held, error)
        await held.gone.wait()

    async def drop_all(self) -> None:
        await asyncio.gather(*(self.drop(job_id, JobCancelledError("worker stops")) for job_id in list(self._jobs)))

    def fail_gateway(self, address: str, error: PackhorseError) -> None:
        for job_id in [job_id for job_id, held in self._jobs.items() if held.intake.job.reply_to == address]:
            self._fail(job_id, error)

    # ---- the page stream (PageSink)

    def opened(self, message: StreamOpen) -> None:
        held = self._held(message.job_id, State.RESERVED)
        held.state = State.RECEIVING

    def pages(self, message: Pages, payload: memoryview) -> None:
        self._held(message.job_id, State.RECEIVING).intake.pages(message, payload)

    def residual(self, message: Residual, payload: memoryview) -> None:
        self._held(message.job_id, State.RECEIVING).intake.residual(message, payload)

    def ended(self, message: StreamEnd) -> None:
        held = self._held(message.job_id, State.RECEIVING)
        held.intake.complete(message)
        held.sequence = self._sequence(held, message)
        held.state = State.RUNNING
        assert self._engine is not None
        if held.sequence.pauses and not held.sequence.replay:
            self._pause(held)
        else:
            self._engine.add(held.sequence)

    def _sequence(self, held: Held, message: StreamEnd) -> DecodeSequence:
        """The job after token 1; one that was dropped has its other tokens before it."""
        job, stats, first = (
            held.job,
            message.stats.model_copy(update={"decode_worker": self.worker_id}),
            message.first_token.token_id,
        )
        tokens = held.replay.tokens if held.replay is not None else (first,)
        if first != tokens[0]:
            raise PackhorseError(f"job {job.job_id}: it came with token 1 {first}, and is to go on after {tokens[0]}")
        sampler, finish = (
            SamplerState(job.sampling, job.prompt),
            FinishRule(job, self.tokenizer, self.model.info.eos_token_ids),
        )
        for index, token in enumerate(tokens):
            sampler.record(token)
            reason, _ = finish.push(token)
            if reason is not None:
                raise PackhorseError(f"job {job.job_id}: token {index + 1} ended it ({reason}), yet it was shipped")
        return DecodeSequence(
            job,
            self._pool.share(job.job_id),
            sampler,
            finish,
            stats.after(held.replay.stats) if held.replay is not None else stats,
            first,
            num_tokens=len(job.prompt),
            replay=deque(tokens[1:]),
        )

    def aborted(self, job_id: str, error: PackhorseError) -> None:
        held = self._jobs.get(job_id)
        if held is None or held.state is not State.RECEIVING:
            return
        if isinstance(error, JobCancelledError):
            held.state = State.RESERVED  # the scheduler releases it
        else:
            self._fail(job_id, error)

    def _held(self, job_id: str, state: State) -> Held:
        held = self._jobs.get(job_id)
        if held is None:
            raise JobCancelledError(f"job {job_id} has no reservation on {self.worker_id}")
        if held.state is not state:
            raise PackhorseError(f"job {job_id} is {held.state.value} on {self.worker_id}, not {state.value}")
        return held

    # ---- the engine's steps

    def _stepped(self, step: Step) -> None:
        """On the loop: sends a step's tokens, one message per gateway, and lets go of the jobs that ended."""
        by_gateway: defaultdict[str, list[TokenOutput]] = defaultdict(list)
        for sequence, output in step.outputs:
            by_gateway[sequence.job.reply_to].append(output)
        for reply_to, outputs in by_gateway.items():
            self.send_tokens(reply_to, outputs)
        self._since_load.add(step)
        self._scores.add(step.scores)
        now = time.monotonic()
        self._steps = [(t, n) for t, n in self._steps if t > now - _RATE_SECONDS] + [(now, len(step.outputs))]
        for _, output in step.outputs:
            if output.stats is not None:
                self._end(output.job_id, output.stats)
        for sequence in step.paused:
            held = self._jobs.get(sequence.job.job_id)
            if held is not None:
                self._pause(held)
        for sequence, error in step.failed:
            self._fail(sequence.job.job_id, error)

    def _pause(self, held: Held) -> None:
        """The job has come to its tool pause and does not run. One that is to leave anyway stays away until it is called back."""
        if held.state is State.RUNNING:
            held.state = State.PAUSED
        self.agent.send(Paused(job_id=held.job.job_id, worker_id=self.worker_id))

    def _end(self, job_id: str, stats: JobStats) -> None:
        """The last token is out: the engine has let go of the job, its memory is free."""
        held = self._jobs.get(job_id)
        if held is None or held.state is State.LEAVING:
            return
        self._free(job_id)
        self.agent.send(JobDone(job_id=job_id, worker_id=self.worker_id, stats=stats))

    def _fail(self, job_id: str, error: PackhorseError) -> None:
        """Takes a job out and then reports it, unless it is on its way out already."""
        held = self._jobs.get(job_id)
        if held is None or held.state is State.LEAVING:
            return
        held.state = State.LEAVING

        async def leave() -> None:
            await self._leave(held, error)
            self.failed(job_id, error)

        task = self.loop.create_task(leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave(self, held: Held, error: PackhorseError) -> None:
        """The one way out: the engine lets go of the job, and no copy is under way, then its memory is free."""
        held.state = State.LEAVING
        if self._receiver is not None:
            self._receiver.abort(held.job.job_id, error)  # a stream that still comes is not read to its end for nothing
        assert self._engine is not None
        await self._engine.drop(held.intake.job.job_id)
        if held.moving is not None:
            await asyncio.wait([held.moving])
        self._free(held.intake.job.job_id)

    def _free(self, job_id: str) -> None:
        self._jobs.pop(job_id).gone.set()
        self._pool.free(job_id)

    def _tokens_per_second(self) -> float:
        since = time.monotonic() - _RATE_SECONDS
        return sum(n for t, n in self._steps if t > since) / _RATE_SECONDS


def advertised(address: str, host: str | None) -> str:
    """`address` with `host` in it; a wildcard bind without one advertises this machine's own address."""
    scheme, _, rest = address.partition("://")
    bound, _, port = rest.rpartition(":")
    if host is None:
        wildcard = bound in ("*", "") or _is_unspecified(bound.strip("[]"))
        host = socket.gethostbyname(socket.gethostname()) if wildcard else bound
    return f"{scheme}://{host}:{port}"


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
