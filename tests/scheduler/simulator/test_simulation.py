"""Whole simulations: every job ends once and leaves nothing, the same seed gives the same run, failures fail what they must."""

from __future__ import annotations

import math

import pytest

from packhorse.errors import ConfigError
from scheduler.simulator import (
    CANCELLED,
    DONE,
    FAILED,
    Arrivals,
    Failure,
    Simulation,
    Slo,
    Workload,
    patient_config,
    summarize,
)
from tests.scheduler.simulator.worlds import COST, cluster, poisson, simulation, workload


@pytest.mark.parametrize("seed", range(4))
def test_every_job_ends_once_and_nothing_is_left(seed: int) -> None:
    """`Simulation.run` ends with `check_idle`; capacity is asserted by the workers at every reservation."""
    load = workload(400, seed)
    times = poisson(400, 15.0, seed)
    cancels = {index: times[index] + 0.02 * (index % 50) for index in range(0, 400, 7)}
    run = simulation(load, 15.0, seed, cluster(2, 3, pages=40), cancels=cancels)
    records = run.run()
    assert set(records.status) == {DONE, CANCELLED}
    for index, status in enumerate(records.status):
        if status == DONE:
            assert records.arrived[index] <= records.prefill_started[index] < records.first_token[index]
            assert records.first_token[index] <= records.ended[index]
    assert run.core.jobs == {}
    assert run.core.totals["done"] + run.core.totals["cancelled"] == 400


def test_pages_run_full_and_never_over() -> None:
    run = simulation(workload(300), 200.0, on=cluster(pages=20))
    records = run.run()
    decode = run.decode["decode-0"]
    assert 15 <= decode.most_pages <= decode.info.capacity_pages == 20
    assert set(records.status) == {DONE}
    assert summarize(records, Slo()).max_wait_seconds > 1.0


def test_a_job_alone_takes_what_the_cost_model_says() -> None:
    records = simulation(Workload("one", [200], [11], [20])).run()
    a, b, c = COST.prefill
    prefill = a + b * 200 + c * 200**2
    a, b, c = COST.decode
    decode = sum(a + b * (201 + step) + c for step in range(10))
    jct = records.ended[0] - records.arrived[0]
    shipping = jct - prefill - decode
    assert records.first_token[0] - records.arrived[0] == pytest.approx(prefill)
    assert COST.transfer[0] < shipping < 2 * COST.transfer[0]


def test_the_same_seed_gives_the_same_run() -> None:
    runs = [simulation(workload(200), 30.0, on=cluster(2, 2), cancels={5: 1.0}).run() for _ in range(2)]
    assert runs[0].ended == runs[1].ended
    other = simulation(workload(200), 30.0, seed=1, on=cluster(2, 2), cancels={5: 1.0}).run()
    assert other.ended != runs[0].ended


def test_a_lost_worker_fails_its_jobs_and_the_rest_goes_on() -> None:
    config = patient_config(worker_timeout_seconds=2.0)
    failures = [Failure("decode-0", 3.0, back_at=8.0), Failure("prefill-1", 4.0)]
    run = simulation(
        workload(400), 40.0, on=cluster(2, 2), config=config, failures=failures, heartbeat_seconds=0.5, cancels={9: 3.1}
    )
    records = run.run()
    lost = [index for index, status in enumerate(records.status) if status == FAILED]
    assert lost
    assert {records.errors[index] for index in lost} <= {"worker_lost", "link_closed"}
    assert sum(status == DONE for status in records.status) > 300
    assert all(records.arrived[index] < 8.0 for index in lost)
    assert [worker.worker_id for worker in run.core.workers if worker.worker_id == "prefill-1"] == []


def test_a_worker_that_is_back_before_it_is_missed_holds_nothing() -> None:
    run = simulation(
        workload(100),
        40.0,
        config=patient_config(worker_timeout_seconds=5.0),
        failures=[Failure("decode-0", 1.0, back_at=1.2)],
        heartbeat_seconds=0.5,
    )
    records = run.run()
    assert {FAILED, DONE} == set(records.status)


def test_with_no_worker_left_jobs_end_at_their_deadline() -> None:
    config = patient_config(worker_timeout_seconds=2.0, queue_seconds=20.0)
    run = simulation(workload(50), 40.0, config=config, failures=[Failure("decode-0", 0.5)], heartbeat_seconds=0.5)
    records = run.run()
    assert max(records.ended) < 30.0
    assert FAILED in records.status


def test_failures_need_heartbeats() -> None:
    with pytest.raises(ConfigError, match="heartbeat_seconds"):
        simulation(workload(5), failures=[Failure("decode-0", 0.5)])


def test_a_closed_loop_keeps_its_concurrency() -> None:
    run = Simulation(cluster(), workload(100), Arrivals(concurrency=3))
    records = run.run()
    changes = sorted([(time, 1) for time in records.arrived] + [(time, -1) for time in records.ended])
    running = highest = 0
    for _, change in changes:
        running += change
        highest = max(highest, running)
    assert highest == 3


def test_one_token_jobs_need_no_decode_worker() -> None:
    run = simulation(Workload("one", [10] * 20, [1] * 20, [1] * 20), on=cluster(1, 1))
    figures = summarize(run.run(), Slo())
    assert figures.mean_jct_seconds == figures.mean_ttft_seconds
    assert run.decode["decode-0"].most_pages == 0


def test_figures_by_hand() -> None:
    records = simulation(Workload("two", [10, 10], [1, 5], [5, 5]), on=cluster()).run()
    records.arrived[:], records.prefill_started[:] = [0.0, 1.0], [0.5, 4.0]
    records.first_token[:], records.ended[:] = [1.0, 4.5], [1.0, 6.5]
    figures = summarize(records, Slo(ttft_seconds=3.5, tpot_seconds=0.4))
    assert figures.duration_seconds == 6.5
    assert figures.mean_jct_seconds == pytest.approx((1.0 + 5.5) / 2)
    assert figures.mean_ttft_seconds == pytest.approx((1.0 + 3.5) / 2)
    assert figures.max_wait_seconds == 3.0
    assert figures.goodput == pytest.approx(1 / 6.5)
    assert figures.throughput_tokens_per_second == pytest.approx(6 / 6.5)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([], [], []), "columns"),
        (([1], [1, 2], [2, 2]), "columns"),
        (([1], [3], [2]), "request 0"),
        (([0], [1], [2]), "prompt without tokens"),
    ],
)
def test_a_wrong_workload_is_refused(columns: tuple[list[int], ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Workload("wrong", *columns)


def test_arrivals_are_open_or_closed() -> None:
    for wrong in ({}, {"times": [1.0], "concurrency": 2}):
        with pytest.raises(ConfigError, match="arrivals"):
            Arrivals(**wrong)


@pytest.mark.parametrize("times", [[0.0, math.nan], [0.0, math.inf], [2.0, 1.0]])
def test_arrivals_that_no_clock_shows_are_refused(times: list[float]) -> None:
    with pytest.raises(ConfigError, match="must be finite and ascending"):
        Arrivals(times)
    assert Arrivals([1.0, 1.0, 2.0]).times


def test_every_request_has_a_time() -> None:
    with pytest.raises(ConfigError, match="2 times of arrival for 3 requests"):
        Simulation(cluster(), workload(3), Arrivals([0.0, 1.0]))


def test_a_request_takes_few_events() -> None:
    """Its arrival, prefill, transfer, last token and the changes of its batch, however many tokens it has."""
    count = 20_000
    load = Workload("speed", [30] * count, [100] * count, [128] * count)
    many = cluster(2, 10, pages=100, max_jobs=16)
    simulation = Simulation(many, load, Arrivals(poisson(count, 100.0)))
    records = simulation.run()
    assert set(records.status) == {DONE}
    assert not math.isnan(records.ended[-1])
    assert simulation.events.added < 10 * count
