"""Jobs that give way on a decode worker: to host memory and back, in any order with arrivals, cancellations and losses."""

from __future__ import annotations

import pytest

from scheduler.predictor.guard import Guarded
from scheduler.simulator import (
    CANCELLED,
    DONE,
    FAILED,
    Arrivals,
    Failure,
    SimOracle,
    Simulation,
    Workload,
    patient_config,
)
from tests.scheduler.simulator.worlds import COST, SMALL_MODEL, cluster, poisson, workload

HOST_BYTES = 10_000_000_000


def two_jobs(policy: str, **fields: object) -> Simulation:
    """A long job, and 0.5 s later a short one; only one of them fits."""
    load = Workload("two", [300, 300], [300, 20], [400, 400])
    one = cluster(max_jobs=1, **{"host_memory_bytes": HOST_BYTES, **fields})
    config = patient_config(policy=policy)
    simulation = Simulation(
        one, load, Arrivals((0.0, 0.5)), config=config, predictor=Guarded(SimOracle()), heartbeat_seconds=0.1
    )
    simulation.run()
    return simulation


def test_a_short_job_takes_the_place_of_a_long_one() -> None:
    simulation = two_jobs("srpt-oracle")
    records = simulation.records
    assert simulation.decode["decode-0"].num_preempted == 1
    assert records.ended[1] < 1.0 < records.ended[0]
    a, b, c = COST.decode
    steps = 299 * (a + c) + b * sum(range(301, 600)) + 19 * (a + c) + b * sum(range(301, 320))
    assert records.ended[0] == pytest.approx(steps, rel=0.05)  # beside prefill, swapping and the ends of steps
    assert 0.15 < records.paused_seconds[0] < 0.5
    assert records.paused_seconds[1] == 0.0


def test_who_does_not_preempt_waits() -> None:
    simulation = two_jobs("fcfs")
    assert simulation.decode["decode-0"].num_preempted == 0
    assert simulation.records.ended[0] < simulation.records.ended[1]


def test_slow_copies_take_their_time() -> None:
    fast, slow = (two_jobs("srpt-oracle", host_bytes_per_second=rate) for rate in (1e10, 2e6))
    size = 4 * SMALL_MODEL.slot_bytes("raw")  # the long job's prompt alone has four closed pages
    assert slow.records.ended[1] - fast.records.ended[1] > size / 2e6


def test_a_job_that_is_dropped_begins_anew_and_its_client_keeps_its_tokens() -> None:
    simulation = two_jobs("srpt-oracle", host_memory_bytes=0)
    records = simulation.records
    worker = simulation.decode["decode-0"]
    assert (worker.num_preempted, worker.num_dropped) == (0, 1)
    assert records.first_token[0] < 0.1
    swapped = two_jobs("srpt-oracle")
    a, _, c = COST.decode
    again = 45 * (a + c)  # about what came within half a second
    assert records.ended[0] == pytest.approx(swapped.records.ended[0] + again, rel=0.03)
    assert 0.15 < records.paused_seconds[0] < 0.5


@pytest.mark.parametrize("policy", ["srpt-oracle", "packhorse", "fastserve", "trail"])
@pytest.mark.parametrize(("seed", "host_bytes"), [(0, HOST_BYTES), (1, HOST_BYTES), (2, 0)])
def test_no_page_is_lost_in_any_order_of_events(policy: str, seed: int, host_bytes: int) -> None:
    """`Simulation.run` ends with `check_idle`, and workers assert at every step that nothing is promised twice."""
    load, times = workload(400, seed), poisson(400, 25.0, seed)
    cancels = {index: times[index] + 0.03 * (index % 60) for index in range(0, 400, 5)}
    simulation = Simulation(
        cluster(1, 2, pages=40, max_jobs=6, host_memory_bytes=host_bytes, host_bytes_per_second=2e6),
        load,
        Arrivals(times, cancels=cancels),
        config=patient_config(policy=policy, worker_timeout_seconds=2.0),
        failures=[Failure("decode-1", 5.0, back_at=6.0)],
        predictor=Guarded(SimOracle()),
        heartbeat_seconds=0.2,
    )
    records = simulation.run()
    assert set(records.status) == {DONE, CANCELLED, FAILED}
    preempted = [decode.num_preempted if host_bytes else decode.num_dropped for decode in simulation.decode.values()]
    assert sum(preempted) > 5
