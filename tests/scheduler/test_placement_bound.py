"""Round robin by arrival: jobs keep the pair of their turn, wait for it alone, and outlive its loss."""

from __future__ import annotations

import gc

from packhorse.errors import LinkClosedError
from scheduler.placement.bound import BoundRoundRobin
from scheduler.workers import Worker
from tests.scheduler.fakes import GATEWAY, Bench, decode_info, make_job, prefill_info
from transport.messages import Cancel, Goodbye, Preempt, WorkerInfo


def bench(*workers: WorkerInfo, **config: str) -> Bench:
    return Bench(*workers, placement="bound-round-robin", **config)


def submit(b: Bench, *names: str, max_tokens: int = 20) -> None:
    for name in names:
        b.submit(make_job(name, max_tokens=max_tokens))


def held(b: Bench, worker_id: str) -> list[str]:
    worker = b.core.workers.get(worker_id)
    assert isinstance(worker, Worker)
    return sorted(worker.jobs)


def test_a_job_waits_for_its_own_pair_and_holds_nobody_else_up() -> None:
    b = bench(prefill_info("p1"), decode_info("d1", max_jobs=1), decode_info("d2"))
    submit(b, "a", "b", "c", "d")
    assert (held(b, "d1"), held(b, "d2")) == (["a"], ["b", "d"])
    assert b.state("c") == "queued", "d2 has room, but its turn was d1"
    b.reserved("d1", "a")
    b.prefilled(job_id="a")
    b.decoded("d1", "a", completion_tokens=3)
    assert held(b, "d1") == ["c"]


def test_prefill_workers_are_waited_for_too() -> None:
    b = bench(prefill_info("p1", max_jobs=1), prefill_info("p2", max_jobs=4), decode_info("d1"))
    submit(b, "a", "b", "c", "d")
    assert (held(b, "p1"), held(b, "p2")) == (["a"], ["b", "d"])
    assert b.state("c") == "queued"
    assert held(b, "d1") == ["a", "b", "d"], "who waits for a prefill worker holds nobody up at the decode worker"


def test_nobody_overtakes_who_waits_for_pages() -> None:
    b = bench(prefill_info("p1"), decode_info("d1", capacity_pages=8))
    submit(b, "half", max_tokens=300)
    submit(b, "whole", max_tokens=480)
    submit(b, "small", max_tokens=2)
    assert held(b, "d1") == ["half"], "the small one would fit, but came later"
    b.failed("d1", LinkClosedError("gone"), "half")
    assert held(b, "d1") == ["small", "whole"]


def test_one_that_fits_only_some_workers_is_bound_to_one_of_them() -> None:
    b = bench(prefill_info("p1"), decode_info("d1", capacity_pages=1), decode_info("d2"))
    submit(b, "a", "b", max_tokens=300)
    assert (held(b, "d1"), held(b, "d2")) == ([], ["a", "b"])


def test_jobs_of_a_lost_worker_are_bound_anew() -> None:
    b = bench(prefill_info("p1"), decode_info("d1", max_jobs=1), decode_info("d2", max_jobs=8))
    submit(b, "a", "b", "c")
    assert b.state("c") == "queued"
    b.hear(b"d1", Goodbye(worker_id="d1"))
    assert held(b, "d2") == ["b", "c"]


def test_nobody_is_stopped_for_a_bound_job() -> None:
    b = bench(prefill_info("p1"), decode_info("d1", max_jobs=1), policy="srpt-oracle")
    submit(b, "long", max_tokens=500)
    b.reserved("d1", "long")
    b.prefilled(job_id="long")
    submit(b, "short", max_tokens=2)
    assert b.state("short") == "queued"
    assert not b.take(Preempt)


def test_nothing_is_kept_of_jobs_that_are_gone() -> None:
    b = bench(prefill_info("p1"), decode_info("d1", max_jobs=1))
    submit(b, "a", "b")
    placement = b.core.placement
    assert isinstance(placement, BoundRoundRobin)
    for name in "ab":
        b.hear(GATEWAY, Cancel(job_id=name, reason="left"))
    b.released("d1", "a")
    gc.collect()
    assert not placement._bound
    assert not placement._first
