"""How a running job gives way on its decode worker: its pages go to host memory and come back, or are dropped and computed again.

    swap = 2 * copy(its bytes)          drop = prefill(prompt) + transfer(the prompt's bytes) + generated * step(the worker's batch)

What was dropped is computed as it was the first time: the prompt's prefill on any pair, then one step for each token that the job had. So
it is bit-exact, which prefilling prompt and tokens in one go is not where pages are quantized: the tokens' K and V came of attention on
codes. A job is dropped only where that is sooner done than what is left of it (else its end makes room sooner), and after it has gone
beyond what it had when it was dropped before (so every attempt makes progress); both rules are ours. Knows nothing of who should give way.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.experience import Experience
from scheduler.jobs import TrackedJob
from scheduler.pages import stored_bytes
from scheduler.policies.estimate import context_tokens, remaining_seconds
from scheduler.workers import Worker


@dataclass(frozen=True)
class Eviction:
    """`swap_seconds` is None where host memory has no room for the job."""

    drop: bool
    swap_seconds: float | None
    drop_seconds: float


def choose_eviction(job: TrackedJob, worker: Worker, host_pages: int, experience: Experience) -> Eviction | None:
    """The cheaper way, where `host_pages` of host memory are free; None where the job had better stay."""
    fits = worker.info.host_pages > 0 and job.pages <= host_pages
    swap = swap_seconds(job, worker, experience) if fits else None
    drop = drop_seconds(job, worker, experience)
    if swap is not None and swap <= drop:
        return Eviction(False, swap, drop)
    if _has_gone_on(job) and drop < remaining_seconds(job, experience.typical):
        return Eviction(True, swap, drop)
    return Eviction(False, swap, drop) if swap is not None else None


def swap_seconds(job: TrackedJob, worker: Worker, experience: Experience) -> float:
    """Of the copies to host memory and back."""
    num_bytes = stored_bytes(context_tokens(job), worker.info.layout)
    return 2 * experience.cost.worker(worker.worker_id).move_seconds(num_bytes)


def drop_seconds(job: TrackedJob, worker: Worker, experience: Experience) -> float:
    """Of doing again what was done, on workers like those in the middle of the fleet; the replay in a batch like the worker's."""
    typical = experience.typical
    shipping = typical.transfer_seconds(stored_bytes(job.prompt_tokens, worker.info.layout))
    step = typical.step_seconds(worker.context_tokens, max(1, worker.device_jobs))
    return typical.prefill_seconds(job.prompt_tokens) + shipping + job.progress.generated * step


def _has_gone_on(job: TrackedJob) -> bool:
    return job.replay is None or job.progress.generated > len(job.replay.tokens)
