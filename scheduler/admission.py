"""Whether the cluster can hold a job at all: some worker of each role must exist and be large enough. Knows nothing of load."""

from __future__ import annotations

from packhorse.errors import ContextLengthError, UnavailableError
from scheduler.jobs import TrackedJob
from scheduler.workers import Workers
from transport.messages import Role


def check_admission(job: TrackedJob, workers: Workers) -> None:
    """Raises UnavailableError (a role without workers), ContextLengthError (no worker could ever hold it)."""
    roles: tuple[Role, ...] = ("prefill", "decode") if job.needs_decode else ("prefill",)
    for role in roles:
        sizes = workers.sizes(role)
        if not sizes:
            raise UnavailableError(f"no {role} worker is registered")
        _check_size(job, role, sizes)


def _check_size(job: TrackedJob, role: Role, sizes: list[tuple[int, int]]) -> None:
    """`sizes`: (max_context_tokens, capacity_pages) of the workers of the role."""
    asked = f"a prompt of {job.prompt_tokens} tokens and max_tokens {job.job.sampling.max_tokens}"
    fitting = [pages for context, pages in sizes if job.context_at(role) <= context]
    if not fitting:
        largest = max(context for context, _ in sizes)
        raise ContextLengthError(
            f"{asked} need {job.total_tokens} tokens; the context of the {role} workers is {largest}"
        )
    most_pages = max(fitting)
    if role == "decode" and job.pages > most_pages:
        raise ContextLengthError(
            f"{asked} need {job.pages} pages; the largest pool of a decode worker has {most_pages}"
        )
