"""The simulated decode engine: continuous batching, jumping from change to change of the batch instead of from token to token.

A step over a batch of B sequences that hold S tokens takes a + b * S + c * B seconds and gives each of them one token, so k steps
take k * (a + b * S + c * B) + b * B * k * (k - 1) / 2. The batch changes only between steps: a job that comes, leaves, pauses or
resumes does so when the step under way ends. Knows nothing of messages, memory or the queue of events: its owner calls `change`
at `next_change`, and decides what runs with `run_set`, `start` and `pause`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

Coefficients = tuple[float, float, float]


@dataclass(eq=False)
class Sequence:
    """One job. `context` and `remaining` are as of the step at which it was last counted; `DecodeModel.progress` has them now."""

    job_id: str
    context: int
    remaining: int
    halts_after: int | None = None  # tokens until it stops by itself, fewer than remain; None: it does not
    running: bool = False
    counted_at: int = 0
    first_step_at: float | None = None

    @property
    def ahead(self) -> int:
        """Steps until it stops by itself."""
        return self.remaining if self.halts_after is None else self.halts_after


class Changes(NamedTuple):
    """Job ids, each in the order of their coming: what has generated its last token, has left, does not run any more as was asked,
    or has halted by itself.
    """

    finished: list[str]
    left: list[str]
    paused: list[str]
    halted: list[str]


class DecodeModel:
    def __init__(self, coefficients: Coefficients) -> None:
        self._a, self._b, self._c = coefficients
        self._sequences: dict[str, Sequence] = {}
        self._batch = 0
        self._context = 0  # of the whole batch, at the start of the jump
        self._step = 0  # steps since the beginning, at the start of the jump
        self._from = 0.0  # when the jump started
        self._jump = 0  # its steps
        self._finishing: list[
            tuple[int, str]
        ] = []  # a heap of (last step, job id); void where the sequence says otherwise
        self._wanted: dict[str, bool | None] = {}  # at the end of the step: run, pause, or None: leave
        self.next_change: float | None = None
        self.busy_seconds = 0.0
        self.steps = 0  # in all; and the sums over them of the tokens and the sequences that they held
        self.step_contexts = 0
        self.step_sequences = 0

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())

    @property
    def batch(self) -> int:
        return self._batch

    # ---- what the owner says; all of it counts from the end of the step under way, or at once while nothing runs

    def add(self, sequence: Sequence) -> None:
        """The sequence is here. It does not run yet."""
        assert sequence.job_id not in self._sequences
        self._sequences[sequence.job_id] = sequence

    def start(self, job_id: str, now: float) -> None:
        """The sequence runs."""
        self._want(job_id, True, now)

    def pause(self, job_id: str, now: float) -> None:
        """The sequence stays, and does not run; `change` tells when it has stopped."""
        self._want(job_id, False, now)

    def remove(self, job_id: str, now: float) -> None:
        """The sequence leaves; `change` tells when it has."""
        self._want(job_id, None, now)

    def run_set(self, job_ids: Collection[str], now: float) -> None:
        """Exactly these run; all others pause."""
        for job_id, sequence in self._sequences.items():
            wanted = self._wanted.get(job_id, sequence.running)
            if wanted is not None and wanted is not (job_id in job_ids):
                self._want(job_id, job_id in job_ids, now)

    def progress(self, job_id: str, now: float) -> tuple[int, int]:
        """(context tokens, remaining tokens) after the last step that has ended by `now`."""
        sequence = self._sequences[job_id]
        if not sequence.running:
            return sequence.context, sequence.remaining
        steps = self._step + self._steps_by(now) - sequence.counted_at
        return sequence.context + steps, sequence.remaining - steps

    # ---- what the owner is told

    def change(self, now: float) -> Changes:
        """To be called at `next_change`: the steps until now are done."""
        self._settle(self._jump)
        finished, halted = self._take_finished()
        left, paused = self._apply(now)
        self._plan(now)
        return Changes(finished, left, paused, halted)

    def _want(self, job_id: str, wanted: bool | None, now: float) -> None:
        self._wanted[job_id] = wanted
        if self._batch == 0:
            self._jump, self._from, self.next_change = 0, now, now
            return
        steps = max(1, min(self._jump, self._steps_to_end(now)))
        if steps < self._jump:
            self._jump = steps
            self.next_change = self._from + self._seconds(steps)

    def _settle(self, steps: int) -> None:
        seconds = self._seconds(steps)
        self._from += seconds
        self.busy_seconds += seconds
        self.steps += steps
        self.step_contexts += steps * self._context + self._batch * steps * (steps - 1) // 2
        self.step_sequences += steps * self._batch
        self._step += steps
        self._context += steps * self._batch
        self._jump = 0

    def _take_finished(self) -> tuple[list[str], list[str]]:
        """(finished, halted)"""
        finished, halted = [], []
        while self._finishing and self._finishing[0][0] <= self._step:
            last_step, job_id = heapq.heappop(self._finishing)
            sequence = self._stopping_at(last_step, job_id)
            if sequence is None:
                continue
            self._stop(sequence)
            if sequence.remaining:
                sequence.halts_after = None
                halted.append(job_id)
            else:
                del self._sequences[job_id]
                self._wanted.pop(job_id, None)
                finished.append(job_id)
        return finished, halted

    def _stopping_at(self, last_step: int, job_id: str) -> Sequence | None:
        """The sequence, if that is the step after which it stops by itself."""
        sequence = self._sequences.get(job_id)
        if sequence is None or not sequence.running or sequence.counted_at + sequence.ahead != last_step:
            return None
        return sequence

    def _apply(self, now: float) -> tuple[list[str], list[str]]:
        left, paused = [], []
        wanted, self._wanted = self._wanted, {}
        for job_id, want in wanted.items():
            sequence = self._sequences.get(job_id)
            if sequence is None:
                continue
            if want and not sequence.running:
                self._go(sequence, now)
            elif not want and sequence.running:
                self._stop(sequence)
            if want is None:
                del self._sequences[job_id]
                left.append(job_id)
            elif not want:
                paused.append(job_id)
        return left, paused

    def _go(self, sequence: Sequence, now: float) -> None:
        sequence.running, sequence.counted_at = True, self._step
        sequence.first_step_at = now if sequence.first_step_at is None else sequence.first_step_at
        self._batch += 1
        self._context += sequence.context
        heapq.heappush(self._finishing, (self._step + sequence.ahead, sequence.job_id))

    def _stop(self, sequence: Sequence) -> None:
        steps = self._step - sequence.counted_at
        sequence.running, sequence.counted_at = False, self._step
        sequence.context += steps
        sequence.remaining -= steps
        if sequence.halts_after is not None:
            sequence.halts_after -= steps
        self._batch -= 1
        self._context -= sequence.context

    def _plan(self, now: float) -> None:
        """The next jump: to the first that stops by itself."""
        self._from, self.next_change = now, None
        while self._finishing:
            last_step, job_id = self._finishing[0]
            if self._stopping_at(last_step, job_id) is not None:
                self._jump = last_step - self._step
                self.next_change = now + self._seconds(self._jump)
                return
            heapq.heappop(self._finishing)

    # ---- times within the jump

    def _seconds(self, steps: int) -> float:
        if not steps:
            return 0.0
        each = self._a + self._b * self._context + self._c * self._batch
        return steps * each + self._b * self._batch * steps * (steps - 1) / 2

    def _steps_to_end(self, now: float) -> int:
        """Steps of the jump until the end of the one under way at `now`: the fewest whose time is not below now."""
        elapsed = now - self._from
        half = self._b * self._batch / 2
        each = self._a + self._b * self._context + self._c * self._batch - half
        if half > 0:
            steps = math.ceil((math.sqrt(each * each + 4 * half * elapsed) - each) / (2 * half))
        else:
            steps = math.ceil(elapsed / each) if each > 0 else self._jump
        while steps > 0 and self._seconds(steps - 1) >= elapsed:
            steps -= 1
        while self._seconds(steps) < elapsed and steps < self._jump:
            steps += 1
        return steps

    def _steps_by(self, now: float) -> int:
        steps = self._steps_to_end(now)
        return steps if self._seconds(steps) <= now - self._from else steps - 1
