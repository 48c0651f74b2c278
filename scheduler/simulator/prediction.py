"""Predictions in a simulation: what any predictor says of a job is believed before the job is queued, and it hears how jobs ended.

`Predicting` stands before the live policy, because a simulation knows what no live scheduler does: how long outputs will be (for the
oracle). The predictor and the policy behind it are the live objects.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.forecast import Forecast
from scheduler.jobs import TrackedJob
from scheduler.policies import PauseAction, Policy, Room, RunPlan
from scheduler.predictor import JobFeatures, Predictor
from scheduler.predictor.base import LEARN_BATCH
from scheduler.simulator.workload import Workload


def features_of(workload: Workload, index: int) -> JobFeatures:
    """What is known of a request; `actual_tokens` for the oracle alone."""
    return JobFeatures(
        prompt=workload.prompts[index] if len(workload.prompts) else (),
        max_tokens=workload.max_tokens[index],
        prompt_tokens=workload.prompt_tokens[index],
        actual_tokens=workload.output_tokens[index],
    )


class Predicting(Policy):
    """`inner`, with every job's forecast by `predictor`."""

    def __init__(self, inner: Policy, predictor: Predictor, workload: Workload) -> None:
        self.inner, self.predictor, self.workload = inner, predictor, workload
        super().__init__(inner.cost)

    def ended(self, index: int) -> None:
        """The request came to its end: the predictor learns from it, with the others of its batch."""
        self.predictor.observe(features_of(self.workload, index), self.workload.output_tokens[index])
        if self.predictor.pending >= LEARN_BATCH:
            self.predictor.learn()

    # ---- the queue

    def add(self, job: TrackedJob, now: float) -> None:
        said = self.predictor.predict(features_of(self.workload, int(job.job_id)))
        job.believe(Forecast.of(said, job.job.sampling.max_tokens))
        self.inner.add(job, now)

    def remove(self, job_id: str) -> None:
        self.inner.remove(job_id)

    def head(self, now: float) -> TrackedJob | None:
        return self.inner.head(now)

    def __len__(self) -> int:
        return len(self.inner)

    # ---- a decode worker

    def plan(self, jobs: Sequence[TrackedJob], room: Room, now: float) -> RunPlan:
        return self.inner.plan(jobs, room, now)

    def pause_action(self, job: TrackedJob, others_tokens: int) -> PauseAction:
        return self.inner.pause_action(job, others_tokens)

    def observe(self, job: TrackedJob, output_tokens: int, now: float) -> None:
        self.inner.observe(job, output_tokens, now)

    def forget(self, job_id: str) -> None:
        self.inner.forget(job_id)

    # ---- what the scheduler reads and sets

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.inner.name

    @property
    def preempts(self) -> bool:  # type: ignore[override]
        return self.inner.preempts

    @property
    def review_seconds(self) -> float:  # type: ignore[override]
        return self.inner.review_seconds

    @property
    def room(self) -> Room | None:
        return self.inner.room

    @room.setter
    def room(self, room: Room | None) -> None:
        self.inner.room = room
