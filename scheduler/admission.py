"""Whether a job may join the queue: some worker of each role must exist and be large enough, and the queue has an end."""

from __future__ import annotations

from packhorse.errors import ContextLengthError, OverloadedError, UnavailableError
from scheduler.jobs import TrackedJob
from scheduler.workers import Worker, Workers


def check_admission(job: TrackedJob, workers: Workers, queued: int, max_queue: int) -> None:
    """Raises UnavailableError (a role without workers), ContextLengthError (no worker could ever hold it), OverloadedError."""
    for role in ("prefill", "decode") if job.needs_decode else ("prefill",):
        candidates = workers.of_role(role)
        if not candidates:
            raise UnavailableError(f"no {role} worker is registered")
        _check_size(job, role, candidates)
    if queued >= max_queue:
        raise OverloadedError(f"{queued} jobs are queued; the limit is {max_queue}")


def _check_size(job: TrackedJob, role: str, candidates: list[Worker]) -> None:
    asked = f"a prompt of {job.prompt_tokens} tokens and max_tokens {job.job.sampling.max_tokens}"
    fitting = [worker for worker in candidates if worker.has_context_for(job)]
    if not fitting:
        largest = max(worker.info.max_context_tokens for worker in candidates)
        raise ContextLengthError(
            f"{asked} need {job.total_tokens} tokens; the context of the {role} workers is {largest}"
        )
    most_pages = max(worker.info.capacity_pages for worker in fitting)
    if role == "decode" and job.pages > most_pages:
        raise ContextLengthError(
            f"{asked} need {job.pages} pages; the largest pool of a decode worker has {most_pages}"
        )
