"""The simulated prefill engine: chunked prefill, first come first served within a priority, jumping from event to event.

A chunk takes `chunk_tokens` from as many prompts as fit and costs a + b * tokens + c * (growth of the squared lengths). A prompt
that fills several chunks alone is run in one jump; a job of higher priority cuts the jump at the end of the chunk under way.
Knows nothing of messages, links or the queue of events: its owner calls `finish` at `busy_until`.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

Coefficients = tuple[float, float, float]


@dataclass(eq=False)
class Prompt:
    """One job's prompt. `started_at` is when its first chunk began; `chunk_tokens` what its newest chunk held."""

    job_id: str
    tokens: int
    priority: int = 0
    done_tokens: int = 0
    started_at: float | None = None
    last_chunk_tokens: int = 0
    dropped: bool = False


@dataclass
class Run:
    """What computes now: pieces of prompts, as (prompt, tokens). `chunks` is above 1 for one prompt alone."""

    pieces: list[tuple[Prompt, int]]
    started_at: float
    chunks: int = 1
    prompts: list[Prompt] = field(default_factory=list)


class PrefillModel:
    def __init__(self, coefficients: Coefficients, chunk_tokens: int) -> None:
        self._a, self._b, self._c = coefficients
        self._chunk_tokens = chunk_tokens
        self._queue: list[tuple[int, int, Prompt]] = []
        self._order = 0
        self._run: Run | None = None
        self.busy_until: float | None = None
        self.busy_seconds = 0.0

    def add(self, prompt: Prompt, now: float) -> None:
        """The prompt joins the queue, and starts when nothing else runs."""
        self._order += 1
        heapq.heappush(self._queue, (-prompt.priority, self._order, prompt))
        if self._run is None:
            self._start(now)
        elif self._run.chunks > 1 and prompt.priority > self._run.pieces[0][0].priority:
            self._cut(now)

    def drop(self, prompt: Prompt, now: float) -> None:
        """The prompt is not wanted any more; a chunk that it is in still ends."""
        prompt.dropped = True
        if self._run is not None and self._run.chunks > 1 and self._run.pieces[0][0] is prompt:
            self._cut(now)

    def finish(self, now: float) -> list[Prompt]:
        """To be called at `busy_until`: the prompts that are complete now, in order. The next run starts."""
        assert self._run is not None
        run, self._run = self._run, None
        self.busy_seconds += now - run.started_at
        complete = []
        for prompt, tokens in run.pieces:
            prompt.done_tokens += tokens
            prompt.last_chunk_tokens = min(tokens, self._chunk_tokens)
            if prompt.done_tokens >= prompt.tokens and not prompt.dropped:
                complete.append(prompt)
        rest = run.pieces[-1][0]
        if rest.done_tokens < rest.tokens:
            self._requeue(rest)
        self._start(now)
        return complete

    def _requeue(self, prompt: Prompt) -> None:
        """A prompt that is under way goes before those of its priority: it came before them."""
        heapq.heappush(self._queue, (-prompt.priority, -self._order, prompt))

    def _start(self, now: float) -> None:
        pieces: list[tuple[Prompt, int]] = []
        room, chunks = self._chunk_tokens, 1
        while self._queue and room > 0:
            prompt = self._queue[0][2]
            left = prompt.tokens - prompt.done_tokens
            if prompt.dropped:
                heapq.heappop(self._queue)
                continue
            take = min(left, room)
            heapq.heappop(self._queue)
            if not pieces and left >= 2 * self._chunk_tokens:
                chunks = left // self._chunk_tokens
                take, room = chunks * self._chunk_tokens, take
            pieces.append((prompt, take))
            room -= min(take, room)
        self.busy_until = None
        if pieces:
            self._run = Run(pieces, now, chunks)
            for prompt, _ in pieces:
                prompt.started_at = now if prompt.started_at is None else prompt.started_at
            self.busy_until = now + self._seconds(self._run)

    def _cut(self, now: float) -> None:
        """Ends the jump with the chunk under way."""
        assert self._run is not None
        prompt, _ = self._run.pieces[0]
        for chunks in range(1, self._run.chunks):
            short = Run([(prompt, chunks * self._chunk_tokens)], self._run.started_at, chunks)
            end = self._run.started_at + self._seconds(short)
            if end >= now:
                self._run, self.busy_until = short, end
                return

    def _seconds(self, run: Run) -> float:
        tokens = squares = 0
        for prompt, count in run.pieces:
            end = prompt.done_tokens + count
            tokens += count
            squares += end * end - prompt.done_tokens * prompt.done_tokens
        return self._a * run.chunks + self._b * tokens + self._c * squares
