"""Overload: waits are predicted, who would miss a deadline is refused at once and told when to retry, lower classes first."""

from __future__ import annotations

import random
from typing import Any

import pytest

from bench.sim_workloads import find_source, poisson_times
from scheduler.backlog import LEAST_SECONDS
from scheduler.policies import POLICIES
from scheduler.predictor.guard import Guarded
from scheduler.simulator import (
    Arrivals,
    Records,
    SimOracle,
    Simulation,
    Slo,
    Workload,
    a100_cluster,
    patient_config,
    saturation_rate,
    summarize,
)
from tests.scheduler.fakes import Bench, decode_info, make_job, prefill_info
from transport.messages import Job, JobFailed

LATER = 2 * LEAST_SECONDS


def with_class(job_id: str, priority: int) -> Job:
    return make_job(job_id).model_copy(update={"priority": priority})


def within(job_id: str, seconds: float) -> Job:
    return make_job(job_id).model_copy(update={"max_ttft_seconds": seconds})


def busy_bench(seconds_each: float, queued: int, **config: Any) -> Bench:
    """One place. Jobs were placed every `seconds_each` for a while; one runs and `queued` (q0, q1, ...) of class 0 wait."""
    bench = Bench(prefill_info(max_jobs=1), decode_info(max_jobs=1), **{"max_queue": 1000, **config})
    ended = 0
    for i in range(queued + 1):
        bench.submit(make_job(f"old-{i}"))
    while ended * seconds_each < LATER + 1:
        bench.submit(make_job(f"new-{ended}"))
        bench.wait(seconds_each)
        (running,) = [job for job in bench.core.jobs.values() if job.decode_worker]
        bench.reserved(job_id=running.job_id)
        bench.prefilled(job_id=running.job_id)
        bench.decoded(job_id=running.job_id, completion_tokens=20)
        ended += 1
    bench.sent.clear()
    return bench


def codes(bench: Bench) -> dict[str, str]:
    return {message.job_id: message.error.code for message in bench.take(JobFailed)}


def test_who_is_predicted_to_miss_the_deadline_is_refused_and_told_when_to_retry() -> None:
    bench = busy_bench(1.0, 30, queue_seconds=30.0)
    assert len(bench.core.policy) <= 30, "the queue has stopped growing"
    for i in range(40):
        bench.submit(make_job(f"more-{i}"))
    failures = bench.take(JobFailed)
    admitted = len(bench.core.policy)
    assert 20 <= admitted <= 28, "one job a second, 0.8 of 30 s"
    assert failures
    for failure in failures:
        assert failure.error.code == "overloaded"
        assert 1 <= failure.error.retry_after_seconds <= 8
        assert "the job would wait for about" in failure.error.message
    assert bench.core.totals["failed:overloaded"] >= len(failures)


def test_nothing_is_shed_before_a_rate_is_known_or_when_it_is_turned_off() -> None:
    fresh = Bench(prefill_info(max_jobs=1), decode_info(max_jobs=1), queue_seconds=1.0, max_queue=1000)
    for i in range(50):
        fresh.submit(make_job(f"j{i}"))
    assert not fresh.take(JobFailed)
    never = busy_bench(1.0, 25, queue_seconds=30.0, shed=False)
    for i in range(100):
        never.submit(make_job(f"more-{i}"))
    assert not never.take(JobFailed)


def test_an_idle_worker_whose_steps_cost_by_their_context_alone_is_no_division_by_zero() -> None:
    """Steps that grow faster than their context are fitted so."""
    bench = busy_bench(1.0, 5, queue_seconds=10.0)
    bench.register(decode_info("d2", max_context_tokens=1))
    bench.core.experience.cost.worker("d2").decode.coefficients = (0.0, 1e-6, 0.0)
    bench.wait(2.0)
    bench.sent.clear()
    bench.submit(make_job("late"))
    assert bench.core.jobs["late"].state == "queued"


def test_a_ttft_that_is_set_counts_too() -> None:
    bench = busy_bench(1.0, 4, shed_ttft_seconds=10.0)
    for i in range(20):
        bench.submit(make_job(f"more-{i}"))
    assert set(codes(bench).values()) == {"overloaded"}
    assert 5 <= len(bench.core.policy) <= 9


def test_a_request_may_allow_less_time_to_token_1() -> None:
    bench = busy_bench(1.0, 6)
    bench.submit(within("short", 3.0))
    bench.submit(within("long", 60.0))
    (failure,) = bench.take(JobFailed)
    assert (failure.job_id, failure.error.code) == ("short", "overloaded")
    assert 1 <= failure.error.retry_after_seconds <= 8
    assert bench.state("long") == "queued"


def test_the_tightest_limit_decides() -> None:
    bench = busy_bench(1.0, 6, shed_ttft_seconds=3.0)
    bench.submit(within("own", 60.0))
    assert codes(bench) == {"own": "overloaded"}, "what is set holds for all"


def test_who_may_not_be_refused_fails_at_its_own_deadline() -> None:
    bench = busy_bench(1.0, 6, shed=False)
    bench.submit(within("own", 3.0))
    bench.wait(2.5)
    assert bench.state("own") == "queued"
    bench.wait(1.0)
    (failure,) = bench.take(JobFailed)
    assert (failure.job_id, failure.error.code) == ("own", "deadline_exceeded")
    assert failure.error.message == "the job was still queued when its max_ttft_seconds=3 had passed"


def test_lower_classes_make_way_for_a_deadline_of_its_own() -> None:
    bench = busy_bench(1.0, 6)
    hasty = within("hasty", 3.0).model_copy(update={"priority": 1})
    bench.submit(hasty)
    shed = codes(bench)
    assert bench.state("hasty") == "queued"
    assert shed
    assert set(shed.values()) == {"overloaded"}


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_lower_classes_are_shed_first(policy: str) -> None:
    """A full queue: the newest of the lowest class makes room; among equals nobody does."""
    bench = Bench(prefill_info(max_jobs=1), decode_info(max_jobs=1), max_queue=3, policy=policy)
    bench.submit(make_job("runs"))
    for name, priority in (("low-1", -1), ("low-2", -1), ("middle", 0)):
        bench.submit(with_class(name, priority))
    bench.submit(with_class("equal", -1))
    assert codes(bench) == {"equal": "overloaded"}
    bench.submit(with_class("high", 1))
    assert codes(bench) == {"low-2": "overloaded"}
    bench.submit(with_class("middle-2", 0))
    assert codes(bench) == {"low-1": "overloaded"}
    assert sorted(job.job_id for job in bench.core.policy.queued()) == ["high", "middle", "middle-2"]
    assert bench.state("low-1") is None


def test_lower_classes_make_way_until_the_higher_one_fits() -> None:
    bench = busy_bench(1.0, 0, queue_seconds=20.0)
    for i in range(30):
        bench.submit(with_class(f"low-{i:02}", 0))
    queued = [job.job_id for job in bench.core.policy.queued()]
    bench.take(JobFailed)
    bench.submit(with_class("high", 1))
    shed = codes(bench)
    assert shed
    assert list(shed) == queued[::-1][: len(shed)], "the newest first"
    assert bench.state("high") == "queued"
    assert len(shed) <= 2, "no more than needed"


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_those_ahead_are_those_that_would_be_placed_before(policy: str) -> None:
    """Against a copy of the queue in which the job is."""
    draw = random.Random(4)
    for _ in range(20):
        bench = Bench(prefill_info(max_jobs=1), decode_info(max_jobs=1), policy=policy, max_queue=1000)
        bench.submit(make_job("runs"))
        for i in range(12):
            bench.now += draw.random()
            job = make_job(f"j{i}", prompt_tokens=draw.randint(1, 200), max_tokens=draw.randint(2, 300))
            bench.submit(job.model_copy(update={"priority": draw.choice([0, 1])}))
        queue = bench.core.policy
        bench.submit(make_job("new", prompt_tokens=draw.randint(1, 200), max_tokens=draw.randint(2, 300)))
        new = bench.core.jobs["new"]
        queue.remove("new")
        ahead = {job.job_id for job in queue.ahead(new, bench.now)}
        queue.add(new, bench.now)
        before = set()
        while (head := queue.head(bench.now)) is not new:
            assert head is not None
            before.add(head.job_id)
            queue.remove(head.job_id)
        assert ahead == before


def test_of_one_class_the_newest_makes_way() -> None:
    bench = Bench(prefill_info(max_jobs=1), decode_info(max_jobs=1), max_queue=3)
    for name in ("runs", "old", "middle", "new"):
        bench.submit(with_class(name, 0))
        bench.now += 1
    bench.submit(with_class("high", 1))
    assert codes(bench) == {"new": "overloaded"}


def test_a_wish_that_prefill_alone_would_break_is_refused_only_where_waits_are_known() -> None:
    fresh = Bench(prefill_info(max_jobs=1), decode_info(max_jobs=1))
    for job in (make_job("runs"), make_job("waits"), within("hasty", 1e-6)):
        fresh.submit(job)
    assert codes(fresh) == {}
    bench = busy_bench(1.0, 3)
    prompt = {"prompt": (1,) * 900, "max_ttft_seconds": 5.0}
    assert bench.core.experience.typical.prefill_seconds(900) < 0.1
    bench.submit(make_job("soon").model_copy(update=prompt))
    assert codes(bench) == {}
    bench.core.experience.typical.prefill_seconds = lambda tokens, cached_tokens=0: 0.005 * tokens  # type: ignore[method-assign]
    bench.submit(make_job("late").model_copy(update=prompt))
    assert codes(bench) == {"late": "overloaded"}


# ---- simulated


def overloaded(policy: str, *, shed: bool, limit: float) -> tuple[Records, Workload]:
    """Twice what the pair of A100s can take, for some minutes."""
    cluster, count = a100_cluster("raw"), 1200
    load, _ = find_source("synthetic").draw(count, 2, 8192)
    rate = 2 * saturation_rate(cluster, load, "raw")
    simulation = Simulation(
        cluster,
        load,
        Arrivals(poisson_times(count, rate, 2)),
        config=patient_config(policy=policy, queue_seconds=limit, shed=shed),
        heartbeat_seconds=0.5,
        predictor=Guarded(SimOracle()),
    )
    return simulation.run(), load


@pytest.mark.parametrize("policy", ["fcfs", "packhorse"])
def test_goodput_with_shedding_is_no_less_than_without(policy: str) -> None:
    limit = 10.0
    goodput = {}
    for shed in (False, True):
        records, _ = overloaded(policy, shed=shed, limit=limit)
        figures = summarize(records, Slo(limit, 0.2))
        assert figures.completed + figures.failed == figures.requests
        goodput[shed] = figures.goodput
        print(
            f"{policy}, shed={shed}: {figures.goodput:.2f}/s within the limits, {figures.completed} of {figures.requests} completed"
        )
    assert goodput[True] >= (1.5 if policy == "fcfs" else 0.97) * goodput[False], goodput


def test_those_that_are_admitted_make_it_when_predictions_are_right() -> None:
    records, _ = overloaded("fcfs", shed=True, limit=10.0)
    errors = list(records.errors.values())
    refused, missed = errors.count("overloaded"), errors.count("deadline_exceeded")
    print(f"{len(records.status)} requests: {refused} refused, {missed} of the others missed the deadline")
    assert refused > 300
    assert missed <= 0.02 * (len(records.status) - refused), (refused, missed)
    refusals = [records.ended[i] - records.arrived[i] for i, error in records.errors.items() if error == "overloaded"]
    assert max(refusals) == 0.0, "at once"
