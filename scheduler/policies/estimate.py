"""What is left of a job, in seconds and in memory, from its forecast, its progress and the cost model."""

from __future__ import annotations

from scheduler.jobs import TrackedJob
from scheduler.policies.base import JobCost, Room

MEDIAN = 0.5


def context_tokens(job: TrackedJob) -> int:
    """Prompt and generated tokens."""
    return job.prompt_tokens + job.progress.generated


def remaining_tokens(job: TrackedJob, level: float = MEDIAN) -> float:
    """Tokens still to come at that level; at least 1, and re-estimated when the job outlives its forecast."""
    return job.forecast.remaining(level, job.progress.generated)


def prefill_seconds(job: TrackedJob, cost: JobCost) -> float:
    """0 once the prompt is computed; a job that was dropped has it before it again."""
    return 0.0 if job.progress.computed else cost.prefill_seconds(job.prompt_tokens)


def replay_context(job: TrackedJob) -> float:
    """The mean context of the steps that compute again what a dropped job had."""
    return job.prompt_tokens + job.progress.computed + job.progress.to_replay / 2


def replay_seconds(job: TrackedJob, cost: JobCost) -> float:
    """Of a dropped job's steps up to where it was, the job alone in the batch; 0 for all others."""
    return job.progress.to_replay * cost.step_seconds(round(replay_context(job)), 1)


def decode_seconds(job: TrackedJob, cost: JobCost, tokens: float) -> float:
    """Of `tokens` more steps, the job alone in the batch and its context growing by one each."""
    return tokens * cost.step_seconds(round(context_tokens(job) + tokens / 2), 1)


def remaining_seconds(job: TrackedJob, cost: JobCost, level: float = MEDIAN) -> float:
    """Until its last token, the replay of a dropped job included. Transfers overlap with prefill and count for nobody."""
    begun = prefill_seconds(job, cost) + replay_seconds(job, cost)
    return begun + decode_seconds(job, cost, remaining_tokens(job, level))


def place_seconds(job: TrackedJob, cost: JobCost, room: Room | None, context: float) -> float:
    """Worker-seconds of one token at that context, in a worker full of such jobs; of the job alone while no worker is known."""
    alike = 1 if room is None else max(1, min(room.max_jobs, room.pages // max(1, job.pages)))
    return cost.step_seconds(round(alike * context), alike) / alike
