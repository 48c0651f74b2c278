"""Waiting for a faster worker: worth it in a burst, never for long, and never where it holds up many or the slow ones are needed anyway."""

from __future__ import annotations

import pytest

from scheduler.cost import CostModel, WorkerPrior
from scheduler.forecast import Forecast
from scheduler.jobs import TrackedJob
from scheduler.placement import PredictedCompletion
from scheduler.placement.patience import Patience
from scheduler.placement.prefill_queue import PrefillQueues
from scheduler.workers import Workers
from tests.scheduler.fakes import Bench, decode_info, make_job, prefill_info, tracked
from transport.messages import Reserve

FAST = WorkerPrior(prefill=(0.01, 1e-4, 0.0), decode=(0.01, 0.0, 1e-4), transfer=(1e-3, 1e-9))
SLOW = WorkerPrior(prefill=(0.01, 1e-4, 0.0), decode=(0.2, 0.0, 1e-4), transfer=(1e-3, 1e-9))


def cluster(*, fast_jobs: int = 2) -> tuple[Workers, PredictedCompletion]:
    """A prefill worker with room for all, a fast decode worker that is full, and a slow one that is empty."""
    workers, cost = Workers(), CostModel()
    infos = (prefill_info("p"), decode_info("fast", max_jobs=fast_jobs), decode_info("slow"))
    for info, prior in zip(infos, (FAST, FAST, SLOW), strict=True):
        workers.add(info, b"peer", 0.0)
        cost.add(info.worker_id, prior)
    for i in range(fast_jobs):
        workers.get("fast").hold(believed(f"held-{i}"))  # type: ignore[union-attr]
    return workers, PredictedCompletion(cost)


def believed(job_id: str, *, now: float = 0.0) -> TrackedJob:
    job = tracked(job_id, max_tokens=100, now=now)
    job.believe(Forecast.exact(100, 100))
    return job


def test_a_job_waits_for_the_place_that_will_be_free_soon_and_then_gets_it() -> None:
    workers, placement = cluster()
    assert placement.choose(believed("new"), workers, 0.0) is None
    assert placement.waiting
    assert not placement.has_prefill_for(believed("new")), "nobody is to be preempted for a job that waits"
    workers.get("fast").drop("held-0")  # type: ignore[union-attr]
    pair = placement.choose(believed("new"), workers, 0.5)
    assert pair is not None
    assert pair.decode is workers.get("fast")
    assert not placement.waiting


def test_it_waits_no_longer_than_it_is_predicted_to_gain() -> None:
    """Alone on the slow worker it takes 20 s. The fast one never gets a place free, against all predictions."""
    workers, placement = cluster()
    job = believed("new")
    pair = None
    for tenth in range(400):
        pair = placement.choose(job, workers, tenth / 10)
        if pair is not None:
            break
    assert pair is not None
    assert pair.decode is workers.get("slow")
    assert 10 < placement.now < 25


def test_nobody_waits_where_many_are_behind() -> None:
    workers, placement = cluster()
    pair = placement.choose(believed("new"), workers, 0.0, 1000)
    assert pair is not None
    assert pair.decode is workers.get("slow")


def test_nobody_waits_where_the_slow_worker_is_as_good() -> None:
    workers, placement = cluster()
    for _ in range(100):
        placement.cost.worker("slow").observe_step(1000, 1, 0.01)
    pair = placement.choose(believed("new"), workers, 0.0)
    assert pair is not None
    assert pair.decode is workers.get("slow")


def test_a_full_prefill_worker_is_waited_for_too() -> None:
    workers, cost = Workers(), CostModel()
    slow = WorkerPrior((0.01, 1e-1, 0.0), FAST.decode, FAST.transfer)
    infos = (prefill_info("fast", max_jobs=2), prefill_info("slow"), decode_info("d"))
    for info, prior in zip(infos, (FAST, slow, FAST), strict=True):
        workers.add(info, b"peer", 0.0)
        cost.add(info.worker_id, prior)
    placement = PredictedCompletion(cost)
    held = [tracked(name, prompt_tokens=100, max_tokens=1) for name in "abc"]
    for job in held[:2]:
        pair = placement.choose(job, workers, 0.0)
        assert pair is not None
        pair.prefill.hold(job)
    assert placement.choose(held[2], workers, 0.0) is None
    assert placement.waiting
    workers.get("fast").drop("a")  # type: ignore[union-attr]
    pair = placement.choose(held[2], workers, 0.02)
    assert pair is not None
    assert pair.prefill.worker_id == "fast"


def test_the_core_tries_again_when_the_place_is_free() -> None:
    bench = Bench(prefill_info("p1"), decode_info("fast", max_jobs=1), decode_info("slow"), placement="predicted")
    for worker_id, seconds in (("fast", 0.01), ("slow", 1.0)):
        for _ in range(100):
            bench.core.experience.cost.worker(worker_id).observe_step(100, 1, seconds)
    bench.submit(make_job("first"))
    bench.reserved("fast", "first")
    bench.prefilled(job_id="first")
    bench.submit(make_job("second"))
    assert bench.state("second") == "queued"
    assert not bench.take(Reserve, "slow")
    bench.take(Reserve, "fast")
    bench.decoded("fast", "first", completion_tokens=20)
    (reserve,) = bench.take(Reserve)
    assert (reserve.job.job_id, bench.state("second")) == ("second", "reserving")
    assert bench.core.jobs["second"].decode_worker == "fast"


def test_patience() -> None:
    patience = Patience()
    assert patience.waits(10.0, 5.0, 1.0, 1, 0.0)
    assert not patience.waits(10.0, 5.0, 1.0, 1, 5.0), "what has been waited counts"
    assert not patience.waits(10.0, 5.0, 1.0, 7, 0.0), "six others would be held up by one second each"
    assert not patience.waits(5.0, 10.0, 1.0, 1, 0.0)
    for i in range(200):
        patience.placed(2.0 * i)  # one every 2 s; a place comes free every second: half of the time is taken
    assert patience.waits(10.0, 5.0, 1.0, 2, 0.0)
    assert not patience.waits(10.0, 5.0, 1.0, 4, 0.0), "the queue of four would hold up eight until it is empty"
    assert not patience.waits(10.0, 5.0, 2.1, 1, 0.0), "the fast workers cannot carry the load"


def test_prefill_queues_run_by_time_and_are_corrected_by_what_ends() -> None:
    queues = PrefillQueues()
    queues.update("p", 3.0, 10.0)
    assert queues.free_at("p") == 13.0
    queues.update("p", 5.0, 11.0)
    assert queues.free_at("p") == 15.0
    queues.update("p", 1.0, 12.0)
    assert queues.free_at("p") == 13.0, "what is left needs no more than its whole time"
    queues.update("p", 3.0, 20.0)
    assert queues.free_at("p") == 22.0, "an overdue worker has the new work before it, at least"
    queues.forget("p")
    queues.forget("p")
    assert queues.free_at("p") == 0.0


@pytest.mark.parametrize("placement", ["round-robin", "least-outstanding", "power-of-two", "least-loaded", "predicted"])
def test_equal_workers_get_equal_shares(placement: str) -> None:
    """Jobs alike on workers alike, none ending: counts differ by one at most; where two are drawn at random, by a few."""
    decodes = [decode_info(f"d{i}", max_jobs=100, capacity_pages=1000) for i in range(6)]
    bench = Bench(*(prefill_info(f"p{i}", max_jobs=100) for i in range(4)), *decodes, placement=placement)
    for i in range(120):
        bench.submit(make_job(f"j{i}"))
    for role, each in (("prefill", 30), ("decode", 20)):
        counts = [len(worker.jobs) for worker in bench.core.workers.of_role(role)]  # type: ignore[arg-type]
        slack = 4 if placement == "power-of-two" else 0
        assert max(counts) - each <= slack, (role, counts)
        assert each - min(counts) <= 2 * slack, (role, counts)
