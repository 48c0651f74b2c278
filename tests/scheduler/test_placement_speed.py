"""5,000 placements per second on one core with 1,000 workers, the 99th percentile within 2 ms.

In processor time, and in the best of a few rounds: neighbours on the same core's caches can only make a round slower.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator

import pytest

from scheduler.cost import CostModel, WorkerPrior
from scheduler.forecast import Forecast
from scheduler.placement import PLACEMENTS
from scheduler.workers import Workers
from tests.scheduler.fakes import Bench, decode_info, make_job, prefill_info, tracked
from transport.messages import Placed

WORKERS, JOBS = 1000, 3000
RATE = 1000.0  # jobs per second
ROUNDS = 4


def infos() -> list[object]:
    """Half of each role; pools of three sizes."""
    half = WORKERS // 2
    prefills = [prefill_info(f"p{i:03}", max_jobs=8) for i in range(half)]
    decodes = [decode_info(f"d{i:03}", max_jobs=16, capacity_pages=(40, 80, 160)[i % 3]) for i in range(half)]
    return [*prefills, *decodes]


def prior(k: float) -> WorkerPrior:
    return WorkerPrior(prefill=(5e-3 * k, 1e-4 * k, 1e-9), decode=(0.015 * k, 8e-8 * k, 5e-5), transfer=(1e-3, 4e-10))


@pytest.fixture(autouse=True)
def _frozen_heap() -> Iterator[None]:
    """What the whole test run has imported is no part of a scheduler's heap, and takes tens of milliseconds to look through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("name", sorted(PLACEMENTS))
def test_choosing(name: str) -> None:
    check(name, choose_many)


def choose_many(name: str) -> list[float]:
    """Seconds of each choice, with up to two thirds of the places taken, jobs coming and going; workers of ten speeds."""
    draw, cost, workers = random.Random(7), CostModel(), Workers()
    for i, info in enumerate(infos()):
        workers.add(info, b"peer", 0.0)  # type: ignore[arg-type]
        cost.add(info.worker_id, prior(1.0 + i % 10))  # type: ignore[attr-defined]
    placement, held, times = PLACEMENTS[name](cost), [], []
    placement.choose(tracked("warm"), workers)
    for i in range(JOBS + 2000):
        job = tracked(f"j{i}", pages=draw.randint(0, 9), prompt_tokens=draw.randint(1, 900), max_tokens=50)
        job.believe(Forecast.exact(draw.randint(1, 50), 50))
        start = time.thread_time()
        pair = placement.choose(job, workers, i / RATE)
        if pair is None:  # it is to wait for a faster worker; the next one may be another kind of job
            assert placement.waiting
            times.append(time.thread_time() - start)
            continue
        assert pair.decode is not None
        pair.prefill.hold(job)
        pair.decode.hold(job)
        times.append(time.thread_time() - start)
        held.append((job.job_id, pair))
        if len(held) > 2500:
            job_id, old = held.pop(draw.randrange(len(held)))
            old.prefill.drop(job_id)
            old.decode.drop(job_id)
    return times[2000:]


@pytest.mark.parametrize("name", ["least-loaded", "predicted"])
def test_through_the_core(name: str) -> None:
    check(name, submit_many)


def submit_many(name: str) -> list[float]:
    """Seconds from Submit to the StartPrefill that leaves: everything that the scheduler does for a job until it is placed."""
    bench = Bench(*infos(), placement=name, policy="packhorse")  # type: ignore[arg-type]
    times = []
    for i in range(JOBS):
        job = make_job(f"j{i}", prompt_tokens=50, max_tokens=50)
        start = time.thread_time()
        bench.submit(job)
        bench.reserved(bench.core.jobs[job.job_id].decode_worker, job.job_id)
        times.append(time.thread_time() - start)
        assert bench.take(Placed)
        bench.sent.clear()
    return times


def check(name: str, run: Callable[[str], list[float]]) -> None:
    met = False
    for _ in range(ROUNDS):
        times = sorted(run(name))
        mean, p99 = sum(times) / len(times), times[int(0.99 * len(times))]
        middle = times[len(times) // 2]
        print(f"{run.__name__}, {name}: {1 / mean:.0f}/s, p50 {middle * 1e6:.0f} us, p99 {p99 * 1e6:.0f} us")
        met = mean <= 1 / 5000 and p99 <= 0.002
        if met:
            break
    assert met
