"""The prefill engine: runs prompts in chunks on its own thread and samples token 1.

First come, first served within a priority; a chunk takes from as many prompts as fit. It knows nothing of the network:
what leaves goes through each sequence's outlet.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import torch

from hack_kernels.page_format import PageFormat
from model.adapter import Model
from model.sampler import Sampled, SamplerState, sample
from model.step_thread import StepThread
from model.text import FinishRule, Tokenizer
from packhorse.errors import PackhorseError
from prefill.batch import Outlet, Piece, PrefillBatch, PrefillSequence, plan_chunk
from transport.messages import FinishReason, Job


@dataclass(frozen=True)
class FirstToken:
    """Token 1 of a job and what its prefill cost."""

    sampled: Sampled
    finish_reason: FinishReason | None
    stop_string: str | None
    seconds: float
    shipped_bytes: int


class PrefillEngine:
    """`prefill` may be awaited for many jobs at once; cancelling it drops the job."""

    def __init__(self, model: Model, fmt: PageFormat, tokenizer: Tokenizer, chunk_tokens: int) -> None:
        self._model = model
        self._fmt = fmt
        self._tokenizer = tokenizer
        self._chunk_tokens = chunk_tokens
        self._sequences: dict[str, PrefillSequence] = {}  # the thread's own, in order of arrival
        self._results: dict[str, asyncio.Future[FirstToken]] = {}  # the loop's own
        self._loop = asyncio.get_running_loop()
        self._thread = StepThread("prefill-engine", self._step, self._crashed)
        self._thread.start()

    async def stop(self, timeout_seconds: float) -> None:
        """Every `prefill` must have ended or been cancelled before."""
        await asyncio.to_thread(self._thread.stop, timeout_seconds)

    async def prefill(
        self, job: Job, outlet: Outlet | None, held_pages: int = 0, first_token: int | None = None
    ) -> FirstToken:
        """Computes the prompt and samples token 1, or takes `first_token` for it; its first `held_pages` are not handed over.

        Raises PackhorseError when the model's output cannot be used.
        """
        result: asyncio.Future[FirstToken] = self._loop.create_future()
        self._results[job.job_id] = result
        self._thread.submit(lambda: self._add(job, outlet, held_pages, first_token))
        try:
            return await result
        except asyncio.CancelledError:
            await self._dropped(job.job_id)
            raise
        finally:
            del self._results[job.job_id]

    async def _dropped(self, job_id: str) -> None:
        """Returns once the thread does not touch the job any more."""
        gone = asyncio.Event()

        def drop() -> None:
            self._sequences.pop(job_id, None)
            self._loop.call_soon_threadsafe(gone.set)

        self._thread.submit(drop)
        await gone.wait()

    # ---- on the engine's thread

    def _add(self, job: Job, outlet: Outlet | None, held_pages: int, first_token: int | None) -> None:
        try:
            self._sequences[job.job_id] = PrefillSequence(
                job=job,
                outlet=outlet,
                sampler=SamplerState(job.sampling, job.prompt),
                finish=FinishRule(job, self._tokenizer, self._model.info.eos_token_ids),
                kv=PrefillSequence.scratch(self._model.info, len(job.prompt)),
                held_pages=held_pages,
                first_token=first_token,
            )
        except (PackhorseError, RuntimeError) as error:  # RuntimeError: torch, out of memory
            self._fail(job.job_id, _as_packhorse(error))

    def _step(self) -> bool:
        """One chunk; True while there is more to do."""
        if not self._sequences:
            return False
        waiting = sorted(self._sequences.values(), key=lambda sequence: -sequence.job.priority)
        pieces = plan_chunk(waiting, self._chunk_tokens)
        started = time.monotonic()
        batch = PrefillBatch(self._fmt, pieces)
        logits = self._model.forward(batch.tokens, batch.positions, batch, batch.logits_at)
        seconds = time.monotonic() - started
        for piece in pieces:
            piece.sequence.done_tokens = piece.end
            piece.sequence.seconds += seconds
        self._sample([piece for piece in pieces if piece.last], logits)
        return bool(self._sequences)

    def _sample(self, pieces: list[Piece], logits: torch.Tensor) -> None:
        """logits float32 [pieces, vocab]: one row for each prompt that this chunk ended."""
        for piece, row in zip(pieces, logits, strict=True):
            sequence = piece.sequence
            del self._sequences[sequence.job.job_id]
            try:
                sampled = _first_token(sequence, row)
            except PackhorseError as error:
                self._fail(sequence.job.job_id, error)
                continue
            reason, stop_string = sequence.finish.push(sampled.token_id)
            if reason is None:
                sequence.ship_residual(self._fmt)
            first = FirstToken(sampled, reason, stop_string, sequence.seconds, sequence.shipped_bytes)
            self._resolve(sequence.job.job_id, first)

    def _crashed(self, error: Exception) -> None:
        for job_id in list(self._sequences):
            self._fail(job_id, _as_packhorse(error))
        self._sequences.clear()

    def _resolve(self, job_id: str, first: FirstToken) -> None:
        def deliver() -> None:
            future = self._results.get(job_id)
            if future is not None and not future.done():
                future.set_result(first)

        self._loop.call_soon_threadsafe(deliver)

    def _fail(self, job_id: str, error: PackhorseError) -> None:
        def deliver() -> None:
            future = self._results.get(job_id)
            if future is not None and not future.done():
                future.set_exception(error)

        self._loop.call_soon_threadsafe(deliver)


def _first_token(sequence: PrefillSequence, row: torch.Tensor) -> Sampled:
    """row float32 [vocab] -> token 1, unless it is known already. Raises PackhorseError for logits that hold no answer."""
    if sequence.first_token is not None:
        return Sampled(sequence.first_token)
    (sampled,) = sample(row[None], [sequence.sampler])
    return sampled


def _as_packhorse(error: Exception) -> PackhorseError:
    return error if isinstance(error, PackhorseError) else PackhorseError(f"prefill failed: {error}")
