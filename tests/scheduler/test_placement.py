"""The choice of a pair: every placement keeps its contract under random load, and each does what its name says."""

from __future__ import annotations

import random

import pytest

from packhorse.errors import ConfigError
from scheduler.cost import CostModel, WorkerPrior
from scheduler.forecast import Forecast
from scheduler.jobs import TrackedJob
from scheduler.placement import PLACEMENTS, LeastLoaded, PredictedCompletion
from scheduler.placement.baselines import LeastOutstanding, PowerOfTwo, RoundRobin
from scheduler.placement.completion import payload_bytes
from scheduler.workers import Worker, Workers
from tests.scheduler.fakes import LAYOUT, Bench, decode_info, prefill_info, tracked

NAMES = sorted(PLACEMENTS)
SLOW, FAST = (
    WorkerPrior(prefill=(0.01 * k, 1e-3 * k, 0.0), decode=(0.01 * k, 1e-6 * k, 1e-3 * k), transfer=(1e-3, 1e-9))
    for k in (4, 1)
)


def registry(*infos: object) -> Workers:
    workers = Workers()
    for info in infos:
        workers.add(info, info.worker_id.encode(), 0.0)  # type: ignore[attr-defined, arg-type]
    return workers


def believed(job_id: str, tokens: int, *, pages: int = 1, prompt_tokens: int = 10) -> TrackedJob:
    job = tracked(job_id, pages=pages, prompt_tokens=prompt_tokens, max_tokens=500)
    job.believe(Forecast.exact(tokens, 500))
    return job


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_has_room_and_is_found_whenever_there_is_one(name: str) -> None:
    draw, workers, placement = random.Random(5), Workers(), PLACEMENTS[name]()
    held: list[tuple[TrackedJob, list[str]]] = []
    for i in range(1500):
        event = draw.random()
        if event < 0.03 and len(workers) < 12:
            make = draw.choice([prefill_info, decode_info])
            context, jobs = draw.choice([100, 1000]), draw.randint(1, 4)
            info = make(f"w{i}", max_context_tokens=context, max_jobs=jobs, capacity_pages=draw.choice([5, 9, 20]))
            workers.add(info, b"peer", 0.0)
        elif event < 0.04 and len(workers):
            gone = draw.choice([worker.worker_id for worker in workers])
            workers.remove(gone)
        elif event < 0.4 and held:
            job, ids = held.pop(draw.randrange(len(held)))
            for worker_id in ids:
                if (worker := workers.get(worker_id)) is not None:
                    worker.drop(job.job_id)
        else:
            job = tracked(
                f"j{i}", pages=draw.randint(0, 12), prompt_tokens=draw.choice([5, 200]), max_tokens=draw.choice([1, 50])
            )
            fits = {role: [w for w in workers.of_role(role) if w.has_room_for(job)] for role in ("prefill", "decode")}  # type: ignore[arg-type]
            pair = placement.choose(job, workers)
            possible = bool(fits["prefill"] and (fits["decode"] or not job.needs_decode))
            assert (pair is not None) == (possible and not placement.waiting)
            if pair is not None:
                assert pair.prefill in fits["prefill"]
                assert pair.decode in fits["decode"] if job.needs_decode else pair.decode is None
                pair.prefill.hold(job)
                if pair.decode is not None:
                    pair.decode.hold(job)
                held.append((job, [w.worker_id for w in (pair.prefill, pair.decode) if w is not None]))


def test_least_loaded_is_what_a_scan_of_all_workers_gives() -> None:
    draw, placement = random.Random(6), LeastLoaded()
    workers = registry(
        *(prefill_info(f"p{i}", max_jobs=3) for i in range(8)),
        *(decode_info(f"d{i}", max_jobs=draw.randint(1, 4), capacity_pages=draw.choice([5, 20])) for i in range(8)),
    )
    for i in range(400):
        job = tracked(f"j{i}", pages=draw.randint(0, 9), prompt_tokens=draw.randint(1, 50))
        pair = placement.choose(job, workers)
        room = [worker for worker in workers if worker.has_room_for(job)]
        prefill = min((w for w in room if w.info.role == "prefill"), key=_tokens, default=None)
        decode = min((w for w in room if w.info.role == "decode"), key=_share, default=None)
        assert (None if pair is None else (pair.prefill, pair.decode)) == (
            None if prefill is None or decode is None else (prefill, decode)
        )
        if pair is not None and pair.decode is not None:
            pair.prefill.hold(job)
            pair.decode.hold(job)
        for worker in workers:
            if worker.jobs and draw.random() < 0.2:
                worker.drop(draw.choice(list(worker.jobs)))


def _tokens(worker: Worker) -> tuple[int, int, str]:
    return worker.prompt_tokens, len(worker.jobs), worker.worker_id


def _share(worker: Worker) -> tuple[float, float, str]:
    pages, jobs = worker.reserved_pages / worker.info.capacity_pages, len(worker.jobs) / worker.info.max_jobs
    return pages, jobs, worker.worker_id


def test_round_robin_goes_round_and_skips_the_full() -> None:
    workers = registry(decode_info("d0"), *(prefill_info(f"p{i}", max_jobs=1) for i in range(3)))
    placement = RoundRobin()
    chosen = []
    for i in range(7):
        pair = placement.choose(tracked(f"j{i}", max_tokens=1), workers)
        assert pair is not None
        chosen.append(pair.prefill.worker_id)
        if i == 4:
            workers.get("p2").hold(tracked("full"))  # type: ignore[union-attr]
    assert chosen == ["p0", "p1", "p2", "p0", "p1", "p0", "p1"]


def test_least_outstanding_counts_jobs_and_not_tokens() -> None:
    workers = registry(prefill_info("p0"), prefill_info("p1"), decode_info("d0"))
    workers.get("p0").hold(tracked("long", prompt_tokens=400))  # type: ignore[union-attr]
    for name in "ab":
        workers.get("p1").hold(tracked(name, prompt_tokens=1))  # type: ignore[union-attr]
    pair = LeastOutstanding().choose(tracked("new"), workers)
    assert pair is not None
    assert pair.prefill.worker_id == "p0"


def test_power_of_two_prefers_the_less_loaded_and_repeats_with_its_seed() -> None:
    def counts(seed: int) -> list[int]:
        workers = registry(*(prefill_info(f"p{i}", max_jobs=100) for i in range(10)), decode_info("d0"))
        placement = PowerOfTwo(seed=seed)
        for i in range(200):
            pair = placement.choose(tracked(f"j{i}", max_tokens=1), workers)
            assert pair is not None
            pair.prefill.hold(tracked(f"j{i}", max_tokens=1))
        return [len(worker.jobs) for worker in workers.of_role("prefill")]

    assert max(counts(1)) <= 23
    assert counts(1) == counts(1) != counts(2)


def mixed_cluster() -> tuple[Workers, CostModel]:
    cost = CostModel()
    infos = []
    for i, prior in enumerate((SLOW, SLOW, FAST)):
        for info in (prefill_info(f"p{i}", max_jobs=64), decode_info(f"d{i}", max_jobs=64, capacity_pages=1000)):
            cost.add(info.worker_id, prior)
            infos.append(info)
    return registry(*infos), cost


def test_work_is_spread_by_speed() -> None:
    workers, cost = mixed_cluster()
    placement = PredictedCompletion(cost)
    for i in range(60):
        job = believed(f"j{i}", 100, prompt_tokens=100)
        pair = placement.choose(job, workers)
        assert pair is not None
        assert pair.decode is not None
        pair.prefill.hold(job)
        pair.decode.hold(job)
    jobs = {worker.worker_id: len(worker.jobs) for worker in workers}
    assert 2 * max(jobs["p0"], jobs["p1"]) < jobs["p2"] < 60
    assert 2 * max(jobs["d0"], jobs["d1"]) < jobs["d2"] < 60


def test_the_pairs_own_link_counts() -> None:
    workers, cost = mixed_cluster()
    job = believed("a", 20, prompt_tokens=400)
    for _ in range(20):
        cost.observe_transfer("p2", "d2", payload_bytes(job, workers.get("d2")), 60.0)  # type: ignore[arg-type]
        cost.observe_transfer("p2", "d0", payload_bytes(job, workers.get("d0")), 0.001)  # type: ignore[arg-type]
    pair = PredictedCompletion(cost).choose(job, workers)
    assert pair is not None
    assert pair.decode is not None
    assert (pair.prefill.worker_id, pair.decode.worker_id) != ("p2", "d2")
    assert "transfer 0.0" in pair.why


def test_what_a_job_costs_the_others_counts() -> None:
    cost = CostModel()
    prior = WorkerPrior(prefill=(0.01, 1e-4, 0.0), decode=(0.02, 0.0, 1e-3), transfer=(1e-3, 1e-9))
    for worker_id in ("p0", "d0", "d1"):
        cost.add(worker_id, prior)
    cost.add("d1", WorkerPrior(prior.prefill, (0.025, 0.0, 1e-3), prior.transfer))
    workers = registry(prefill_info("p0"), decode_info("d0", max_jobs=64), decode_info("d1", max_jobs=64))
    for i in range(4):  # a step of d0 is still shorter than one of d1 with the job on either, 25 against 26 ms
        workers.get("d0").hold(believed(f"h{i}", 100, pages=0))  # type: ignore[union-attr]
    pair = PredictedCompletion(cost).choose(believed("new", 100, pages=0), workers)
    assert pair is not None
    assert pair.decode is workers.get("d1")


def ports() -> tuple[Workers, CostModel]:
    """One prefill worker, and two decode workers of which the one with longer steps has the faster port."""
    cost = CostModel()
    workers = registry(
        prefill_info("p0", max_jobs=8), *(decode_info(f"d{i}", max_jobs=8, capacity_pages=1000) for i in range(2))
    )
    for worker_id, step, byte_seconds in (("p0", 0.0, 1e-6), ("d0", 0.020, 1e-5), ("d1", 0.021, 1e-6)):
        cost.add(worker_id, WorkerPrior((0.01, 1e-4, 0.0), (step, 0.0, 0.0), (1e-3, byte_seconds)))
    for worker_id in ("d0", "d1"):
        for _ in range(200):
            cost.observe_transfer("p0", worker_id, 100_000, 1e-3)  # prefill hides the transfers to either
    return workers, cost


def test_a_slow_port_is_spared_while_others_need_it() -> None:
    workers, cost = ports()
    d0, placement, new = workers.get("d0"), PredictedCompletion(cost), believed("new", 100, prompt_tokens=400)
    assert d0 is not None
    pair = placement.choose(new, workers)
    assert pair is not None
    assert pair.decode is d0, "it is through before anyone comes"
    assert "costs others 0.0" in pair.why
    for i in range(3):
        d0.hold(believed(f"h{i}", 100))
    pair = placement.choose(new, workers)
    assert pair is not None
    assert pair.decode is workers.get("d1"), "the three that are on their way would wait for its bytes"
    for i in range(3):
        d0.arrived(f"h{i}")
    pair = placement.choose(new, workers)
    assert pair is not None
    assert pair.decode is d0


def test_where_nothing_is_predicted_jobs_count_as_those_that_ended_lately() -> None:
    """With long decoding the shorter steps decide, with short decoding the prefill worker's link."""
    prior = WorkerPrior((0.01, 1e-4, 0.0), (0.020, 0.0, 1e-3), (1e-3, 0.0))
    cost, workers = CostModel(), registry(prefill_info("p0"), decode_info("d0"), decode_info("d1"))
    cost.add("p0", prior)
    cost.add("d0", prior)
    cost.add("d1", WorkerPrior(prior.prefill, (0.025, 0.0, 1e-3), prior.transfer))
    job = tracked("new", max_tokens=500)
    for _ in range(20):
        cost.observe_transfer("p0", "d0", payload_bytes(job, workers.get("d0")), 0.3)  # type: ignore[arg-type]
        cost.observe_transfer("p0", "d1", payload_bytes(job, workers.get("d1")), 0.001)  # type: ignore[arg-type]
    placement = PredictedCompletion(cost)
    pair = placement.choose(job, workers)
    assert pair is not None
    assert pair.decode is workers.get("d0")
    for _ in range(32):
        placement.observe(10)
    pair = placement.choose(job, workers)
    assert pair is not None
    assert pair.decode is workers.get("d1")


@pytest.mark.parametrize("field", ["policy", "placement"])
def test_unknown_names_are_refused_with_those_that_are_known(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"{field}='nope': known are .*(fcfs|least-loaded)"):
        Bench(**{field: "nope"})


@pytest.mark.parametrize(
    "capacities", [[1000] * 4, [1001, 1002, 1003, 1000, 1004]], ids=["alike", "each a group of its own"]
)
def test_pages_that_a_decode_worker_holds_are_not_charged(capacities: list[int]) -> None:
    """Over a slow network the worker that holds the prompt's pages is taken, though another has fewer jobs."""
    cost = CostModel()
    prior = WorkerPrior(prefill=(0.01, 1e-4, 0.0), decode=(0.01, 0.0, 1e-3), transfer=(1e-3, 1e-5))
    decodes = (decode_info(f"d{i}", max_jobs=64, capacity_pages=pages) for i, pages in enumerate(capacities))
    infos = [prefill_info("p0"), *decodes]
    for info in infos:
        cost.add(info.worker_id, prior)
    workers = registry(*infos)
    job = believed("new", 20, prompt_tokens=4 + 5 * 64)
    holder = workers.get("d3")
    assert holder is not None
    for i in range(3):
        holder.hold(believed(f"h{i}", 20))
        holder.arrived(f"h{i}")
    whole = payload_bytes(job, holder)
    pair = PredictedCompletion(cost).choose(job, workers)
    assert pair is not None
    assert pair.decode is not holder
    digests = job.page_digests(LAYOUT)
    holder.prefixes.change(b"".join(digests[page] for page in range(4)), b"")
    assert holder.prefix_pages(job) == 4
    assert payload_bytes(job, holder) == whole - 4 * LAYOUT.layers * LAYOUT.kv_heads * LAYOUT.page_bytes
    pair = PredictedCompletion(cost).choose(job, workers)
    assert pair is not None
    assert pair.decode is holder
