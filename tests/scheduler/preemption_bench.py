"""A bench whose decode worker has six pages, and jobs that fill it."""

from __future__ import annotations

from tests.scheduler.fakes import Bench, decode_info, make_job, prefill_info
from transport.messages import (
    Preempted,
)


def bench(policy: str = "srpt-oracle", *, host_pages: int = 20, prefill_jobs: int = 4, **config: object) -> Bench:
    infos = prefill_info("p1", max_jobs=prefill_jobs), decode_info("d1", capacity_pages=6, host_pages=host_pages)
    return Bench(*infos, policy=policy, **config)


def decoding(b: Bench, job_id: str, tokens: int) -> None:
    """A job of `tokens` (its max_tokens, which is what is believed without a predictor), and so many pages as 64 go into it."""
    b.submit(make_job(job_id, max_tokens=tokens))
    b.reserved(job_id=job_id)
    b.prefilled(job_id=job_id)
    assert b.state(job_id) == "decoding"
    b.sent.clear()


def is_out(b: Bench, job_id: str, number: int = 1) -> None:
    b.hear(b"d1", Preempted(job_id=job_id, worker_id="d1", number=number))
