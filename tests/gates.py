"""Holds an engine's jobs at a chosen point, so that what a test does to them meets them there on any machine, however fast or busy.

It stands where the engine's model is, and waits on the engine's thread. Knows nothing of schedulers or sockets.
"""

from __future__ import annotations

import time
from typing import Any

from decode.engine import DecodeEngine
from prefill.engine import PrefillEngine
from tests.waiting import PATIENCE_SECONDS


class Gate:
    """Of one engine. A held job goes no further than its limit; one step of it may go beyond for each command that reaches the engine.

    A command, such as one that takes the job out, is carried out between steps: the step that waits lets it pass.
    """

    def __init__(self, engine: DecodeEngine | PrefillEngine) -> None:
        self._thread = engine._thread
        self._model: Any = engine._model
        self._limits: dict[str, int] = {}
        engine._model = self  # type: ignore[assignment]

    def hold(self, job_id: str, tokens: int) -> None:
        """From `tokens` on: generated ones, token 1 among them, or tokens of a prompt that are computed."""
        self._limits[job_id] = tokens

    def let_go(self, job_id: str) -> None:
        self._limits.pop(job_id, None)

    def forward(self, tokens: Any, positions: Any, batch: Any, logits_at: Any) -> Any:
        self._wait(batch)
        return self._model.forward(tokens, positions, batch, logits_at)

    def forward_hidden(self, tokens: Any, positions: Any, batch: Any, logits_at: Any) -> Any:
        self._wait(batch)
        return self._model.forward_hidden(tokens, positions, batch, logits_at)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _wait(self, batch: Any) -> None:
        limit = time.monotonic() + 2 * PATIENCE_SECONDS
        while self._held(batch) and self._thread._commands.empty():
            assert time.monotonic() < limit, f"held for ever: {self._limits}"
            time.sleep(0.001)

    def _held(self, batch: Any) -> bool:
        if hasattr(batch, "pieces"):
            done = {piece.sequence.job.job_id: piece.end for piece in batch.pieces}
        else:
            done = {sequence.job.job_id: sequence.generated for sequence in batch.sequences}
        return any(count >= self._limits.get(job_id, count + 1) for job_id, count in done.items())


def gate_of(worker: Any) -> Gate:
    """Of a worker that is up."""
    return Gate(worker._engine)
