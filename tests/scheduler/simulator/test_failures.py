"""Workers that are lost and come back, under every policy: jobs end once, nothing is left, and the same seed gives the same run."""

from __future__ import annotations

import pytest

from scheduler.placement import PLACEMENTS
from scheduler.policies import POLICIES
from scheduler.predictor.guard import Guarded
from scheduler.simulator import (
    CANCELLED,
    DONE,
    FAILED,
    Arrivals,
    Failure,
    Records,
    SimOracle,
    Simulation,
    Workload,
    patient_config,
)
from tests.scheduler.simulator.worlds import SMALL_MODEL, cluster, poisson, simulation, workload

COUNT = 120


def made(policy: str, placement: str = "least-loaded", seed: int = 0) -> Simulation:
    """Two workers of each role with host memory, full for most of the time; one of each role is lost, decode-0 twice."""
    on = cluster(2, 2, pages=20, max_jobs=4, host_memory_bytes=10**9)
    times = poisson(COUNT, 60.0, seed)
    failures = [
        Failure("decode-0", 1.0, back_at=4.0),
        Failure("prefill-1", 1.5, back_at=1.7),
        Failure("decode-0", 6.0, back_at=9.0),
    ]
    return simulation(
        workload(COUNT, seed), 60.0, seed, on, failures=failures, heartbeat_seconds=0.5,
        cancels={index: times[index] + 0.4 for index in range(0, COUNT, 9)}, predictor=Guarded(SimOracle()),
        config=patient_config(policy=policy, placement=placement, worker_timeout_seconds=2.0),
    )  # fmt: skip


def check(run: Simulation, records: Records) -> None:
    """`Simulation.run` has looked for what is left."""
    assert set(records.status) == {DONE, FAILED, CANCELLED}
    assert {worker.worker_id for worker in run.core.workers} == set(run.workers)
    lost = [index for index, status in enumerate(records.status) if status == FAILED]
    assert {records.errors[index] for index in lost} <= {"worker_lost", "link_closed"}
    assert sum(status == DONE for status in records.status) > COUNT / 2


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_goes_on_without_the_lost(policy: str) -> None:
    run = made(policy)
    records = run.run()
    check(run, records)
    again = made(policy).run()
    assert (again.ended, again.first_token, again.paused_seconds) == (
        records.ended,
        records.first_token,
        records.paused_seconds,
    )
    assert (again.status, again.errors) == (records.status, records.errors)


@pytest.mark.parametrize("placement", sorted(PLACEMENTS))
def test_every_placement_goes_on_without_the_lost(placement: str) -> None:
    run = made("packhorse", placement, seed=1)
    records = run.run()
    check(run, records)
    assert made("packhorse", placement, seed=1).run().ended == records.ended


def test_preempted_jobs_are_among_those_that_a_lost_worker_takes_along() -> None:
    """What the tests above are about happens in them."""
    run = made("packhorse")
    worker, out = run.decode["decode-0"], []
    vanish = worker.vanish

    def watched(now: float) -> None:
        out.append(worker.num_out)
        vanish(now)

    worker.vanish = watched  # type: ignore[method-assign]
    run.run()
    assert len(out) == 2
    assert max(out) > 0


def test_workers_that_are_back_do_not_wait_for_streams_that_were_lost() -> None:
    """Four long prompts would take 150 s of either port; both workers are lost while they do, and a short one comes when they are back."""
    slow = cluster(network_bytes_per_second=1e4)
    load = Workload("slow", [*([400] * 4), 8], [2] * 5, [2] * 5)
    assert 4 * 400 * SMALL_MODEL.token_bytes / 1e4 > 150
    records = Simulation(
        slow, load, Arrivals([0.0] * 4 + [30.0]), failures=[Failure(name, 5.0, back_at=10.0) for name in ("prefill-0", "decode-0")],
        heartbeat_seconds=0.5, config=patient_config(worker_timeout_seconds=2.0),
    ).run()  # fmt: skip
    assert list(records.status) == [FAILED] * 4 + [DONE]
    assert records.ended[-1] - records.arrived[-1] < 8 * SMALL_MODEL.token_bytes / 1e4 + 1
