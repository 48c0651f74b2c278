"""Messages as simulated workers and gateways send them: the real classes, built without validation, which costs more than the rest."""

from __future__ import annotations

from functools import lru_cache

from scheduler.simulator.prompts import SimPrompt
from transport.messages import (
    FinishReason,
    Job,
    JobDone,
    JobStats,
    PrefillDone,
    Released,
    Reserved,
    Sampling,
    Submit,
)

REPLY_TO = "inproc://simulated"


@lru_cache(maxsize=4096)
def sampling_of(max_tokens: int) -> Sampling:
    return Sampling(max_tokens=max_tokens, seed=0)


def submit(job_id: str, prompt: SimPrompt, max_tokens: int, priority: int) -> Submit:
    job = Job.model_construct(
        _JOB_FIELDS,
        job_id=job_id,
        prompt=prompt,
        sampling=sampling_of(max_tokens),
        reply_to=REPLY_TO,
        priority=priority,
    )
    return Submit.model_construct(_SUBMIT_FIELDS, kind="submit", job=job)


def reserved(job_id: str, worker_id: str) -> Reserved:
    return Reserved.model_construct(_HELD_FIELDS, kind="reserved", job_id=job_id, worker_id=worker_id)


def released(job_id: str, worker_id: str) -> Released:
    return Released.model_construct(_HELD_FIELDS, kind="released", job_id=job_id, worker_id=worker_id)


def prefill_done(job_id: str, worker_id: str, finish_reason: FinishReason | None, stats: JobStats) -> PrefillDone:
    return PrefillDone.model_construct(
        kind="prefill_done", job_id=job_id, worker_id=worker_id, finish_reason=finish_reason, stats=stats
    )


def job_done(job_id: str, worker_id: str, stats: JobStats) -> JobDone:
    return JobDone.model_construct(kind="job_done", job_id=job_id, worker_id=worker_id, stats=stats)


_JOB_FIELDS = set(Job.model_fields)
_SUBMIT_FIELDS = set(Submit.model_fields)
_HELD_FIELDS = set(Reserved.model_fields)
