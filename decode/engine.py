"""The decode engine: continuous batching on its own thread, one token per running job and step.

A job joins the batch at the next step after it was added and leaves it in the step that samples its last token. It knows
nothing of the network; what a step yields goes to the `emit` callback on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from decode.batch import DecodeBatch, DecodeSequence
from decode.pool import PagePool
from decode.scores import Scorer
from model.adapter import Model
from model.sampler import Sampled, broken_rows, sample
from model.step_thread import StepThread
from packhorse.errors import PackhorseError
from transport.messages import LengthScore, TokenOutput


@dataclass(frozen=True)
class Step:
    """What one step yields: a token per job, the jobs that failed in it, and those whose tool pause begins. All but the jobs that go on
    have left the batch.

    `context_tokens` are those that all sequences of the batch held together; `replayed` counts sequences that took a known token;
    `scores` of what remains are of some jobs, if any.
    """

    outputs: list[tuple[DecodeSequence, TokenOutput]]
    failed: list[tuple[DecodeSequence, PackhorseError]]
    seconds: float
    context_tokens: int = 0
    paused: list[DecodeSequence] = field(default_factory=list)
    replayed: int = 0
    scores: dict[str, LengthScore] = field(default_factory=dict)


class DecodeEngine:
    """`scorer` looks at what the model computes, and changes nothing of it."""

    def __init__(
        self, model: Model, pool: PagePool, emit: Callable[[Step], None], scorer: Scorer | None = None
    ) -> None:
        self._model = model
        self._pool = pool
        self._scorer = scorer
        self._emit = emit
        self._running: dict[str, DecodeSequence] = {}  # the thread's own
        self._loop = asyncio.get_running_loop()
        self._thread = StepThread("decode-engine", self._step, self._crashed)
        self._thread.start()

    async def stop(self, timeout_seconds: float) -> None:
        await asyncio.to_thread(self._thread.stop, timeout_seconds)

    def add(self, sequence: DecodeSequence) -> None:
        """The sequence's pages and residual are complete; it joins the batch at the next step."""
        self._thread.submit(lambda: self._running.__setitem__(sequence.job.job_id, sequence))

    async def drop(self, job_id: str) -> None:
        """Returns once no step touches the job's memory any more; unknown jobs are fine."""
        gone = asyncio.Event()

        def remove() -> None:
            self._running.pop(job_id, None)
            self._loop.call_soon_threadsafe(gone.set)

        self._thread.submit(remove)
        await gone.wait()

    # ---- on the engine's thread

    def _step(self) -> bool:
        if not self._running:
            return False
        started = time.monotonic()
        sequences = list(self._running.values())
        context_tokens = sum(sequence.num_tokens for sequence in sequences)
        sampling = [sequence for sequence in sequences if not sequence.replay]
        logits, scores = self._compute(sequences, sampling)
        sampled, failed = _sample(sampling, logits)
        replayed = [sequence for sequence in sequences if sequence.replay]
        for sequence in replayed:
            _replay(sequence)
        outputs = [(sequence, self._advance(sequence, token)) for sequence, token in sampled]
        paused = [sequence for sequence, output in outputs if sequence.pauses and output.finish_reason is None]
        paused += [sequence for sequence in replayed if sequence.pauses and not sequence.replay]
        for sequence in [*paused, *(sequence for sequence, _ in failed)]:
            del self._running[sequence.job.job_id]
        step = Step(outputs, failed, time.monotonic() - started, context_tokens, paused, len(replayed), scores)
        self._loop.call_soon_threadsafe(self._emit, step)
        return bool(self._running)

    def _compute(
        self, sequences: list[DecodeSequence], sampling: list[DecodeSequence]
    ) -> tuple[torch.Tensor, dict[str, LengthScore]]:
        """One forward over `sequences`: the logits, float32 [sampling, vocab], and the scores of those that are due for one."""
        batch = DecodeBatch(self._pool, sequences)
        inputs = (batch.tokens, batch.positions, batch, batch.logits_at)
        due = self._scorer.due(sampling) if self._scorer is not None else []
        if self._scorer is None or not due:
            return self._model.forward(*inputs), {}
        logits, hidden = self._model.forward_hidden(*inputs)
        return logits, self._scorer.scores(sampling, due, hidden)

    def _advance(self, sequence: DecodeSequence, sampled: Sampled) -> TokenOutput:
        """Takes a sampled token into the sequence; removes the sequence from the batch if that ends it."""
        index = sequence.generated
        sequence.sampler.record(sampled.token_id)
        sequence.last_token = sampled.token_id
        sequence.num_tokens += 1
        sequence.generated += 1
        reason, stop_string = sequence.finish.push(sampled.token_id)
        stats = None
        if reason is not None:
            del self._running[sequence.job.job_id]
            stats = sequence.stats.model_copy(update={"completion_tokens": sequence.generated})
        return TokenOutput(
            job_id=sequence.job.job_id,
            index=index,
            token_id=sampled.token_id,
            logprob=sampled.logprob,
            top_logprobs=sampled.top_logprobs,
            finish_reason=reason,
            stop_string=stop_string,
            stats=stats,
        )

    def _crashed(self, error: Exception) -> None:
        failed = [(sequence, PackhorseError(f"decode failed: {error}")) for sequence in self._running.values()]
        self._running.clear()
        self._loop.call_soon_threadsafe(self._emit, Step([], failed, 0.0))


def _replay(sequence: DecodeSequence) -> None:
    """Takes the next known token instead of a sampled one."""
    sequence.last_token = sequence.replay.popleft()
    sequence.num_tokens += 1
    sequence.generated += 1


def _sample(
    sequences: list[DecodeSequence], logits: torch.Tensor
) -> tuple[list[tuple[DecodeSequence, Sampled]], list[tuple[DecodeSequence, PackhorseError]]]:
    """logits float32 [batch, vocab] -> the tokens, and the sequences whose logits hold no answer."""
    broken = broken_rows(logits)
    good = [i for i, bad in enumerate(broken) if not bad]
    failed = [
        (sequence, PackhorseError(f"job {sequence.job.job_id}: the model's logits hold no answer (NaN or infinite)"))
        for sequence, bad in zip(sequences, broken, strict=True)
        if bad
    ]
    if not good:
        return [], failed
    rows = logits if len(good) == len(sequences) else logits[good]
    tokens = sample(rows, [sequences[i].sampler for i in good])
    return [(sequences[i], token) for i, token in zip(good, tokens, strict=True)], failed
