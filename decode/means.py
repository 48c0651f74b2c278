"""Means over the steps between two heartbeats, as the scheduler's cost model takes them."""

from __future__ import annotations

from dataclasses import dataclass

from decode.engine import Step


@dataclass
class StepMeans:
    """Sums over steps that went well; a linear cost of context and jobs holds for their means as it does for each step."""

    steps: int = 0
    seconds: float = 0.0
    context_tokens: int = 0
    jobs: int = 0

    def add(self, step: Step) -> None:
        jobs = len(step.outputs) + step.replayed
        if jobs and not step.failed:
            self.steps += 1
            self.seconds += step.seconds
            self.context_tokens += step.context_tokens
            self.jobs += jobs

    @property
    def step_seconds(self) -> float:
        """0, as the other means, without a step."""
        return self.seconds / max(1, self.steps)

    @property
    def step_context_tokens(self) -> float:
        return self.context_tokens / max(1, self.steps)

    @property
    def step_jobs(self) -> float:
        return self.jobs / max(1, self.steps)
