"""Jobs as policies see them: a known or believed length, some progress, pages that they need."""

from __future__ import annotations

from scheduler.forecast import LEVELS, Forecast
from scheduler.jobs import TrackedJob
from scheduler.policies import Policy
from tests.scheduler.fakes import tracked


class UnitCost:
    """A prefill takes a millisecond per token, a step a tenth of a second whatever is in it."""

    def prefill_seconds(self, tokens: int, cached_tokens: int = 0) -> float:
        return 0.001 * (tokens - cached_tokens)

    def step_seconds(self, context_tokens: int, batch: int) -> float:
        return 0.1


def make(
    job_id: str,
    tokens: float | list[float] = 100,
    *,
    at: float = 0.0,
    pages: int = 1,
    generated: int = 0,
    runs_since: float | None = None,
    prompt_tokens: int = 10,
    max_tokens: int = 1000,
    priority: int = 0,
) -> TrackedJob:
    """`tokens`: the predicted length, or its quantiles. With `generated` the prefill is over."""
    job = tracked(job_id, pages=pages, now=at, prompt_tokens=prompt_tokens, max_tokens=max_tokens)
    job.job = job.job.model_copy(update={"priority": priority})
    quantiles = tokens if isinstance(tokens, list) else [tokens] * len(LEVELS)
    job.forecast = Forecast.made(quantiles, max_tokens)
    job.progress.generated = generated
    if runs_since is not None:
        job.progress.run(runs_since)
    return job


def ids(jobs: tuple[TrackedJob, ...]) -> str:
    return "".join(job.job_id for job in jobs)


def placed_next(policy: Policy, now: float) -> list[str]:
    """All that is queued, as it is placed at that time, one after the other."""
    taken = []
    while (head := policy.head(now)) is not None:
        policy.remove(head.job_id)
        taken.append(head.job_id)
    return taken
