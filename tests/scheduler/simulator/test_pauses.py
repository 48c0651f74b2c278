"""Declared tool pauses in simulations: they last as long as declared, and who gives memory back meanwhile lets others in."""

from __future__ import annotations

import pytest

from scheduler.policies import POLICIES
from scheduler.predictor.guard import Guarded
from scheduler.simulator import DONE, Arrivals, Failure, SimOracle, Simulation, Workload, patient_config
from scheduler.simulator.decode_model import DecodeModel, Sequence
from tests.scheduler.simulator.worlds import cluster, poisson, workload

HOST_BYTES = 10_000_000_000


def simulate(load: Workload, times: tuple[float, ...], policy: str = "fcfs", **fields: object) -> Simulation:
    one = cluster(host_memory_bytes=HOST_BYTES, **fields)
    simulation = Simulation(
        one, load, Arrivals(times), config=patient_config(policy=policy), predictor=Guarded(SimOracle())
    )
    simulation.run()
    return simulation


def end_of(pause: tuple[int, float] | None, policy: str = "fcfs") -> float:
    load = Workload("one", [300], [50], [64], pauses=[pause])
    return float(simulate(load, (0.0,), policy).records.ended[0])


@pytest.mark.parametrize("after_tokens", [1, 2, 30, 49])
def test_a_pause_lasts_as_long_as_declared(after_tokens: int) -> None:
    assert end_of((after_tokens, 7.0)) == pytest.approx(end_of(None) + 7.0)


@pytest.mark.parametrize("after_tokens", [50, 60])
def test_a_job_that_ends_before_its_pause_does_not_pause(after_tokens: int) -> None:
    assert end_of((after_tokens, 7.0)) == end_of(None)


def test_a_declared_pause_is_no_wait() -> None:
    load = Workload("one", [300], [50], [64], pauses=[(10, 7.0)])
    for policy in ("fcfs", "lamps"):
        assert max(simulate(load, (0.0,), policy).records.paused_seconds) < 0.5


def test_who_gives_memory_back_lets_others_in() -> None:
    """The first job fills the pool, and pauses for long."""
    load = Workload("two", [300, 300], [50, 50], [400, 400], pauses=[(10, 30.0), None])
    held, given = (simulate(load, (0.0, 0.5), policy, pages=12) for policy in ("fcfs", "lamps"))
    assert held.records.ended[1] > 30.0
    assert given.records.ended[1] < 5.0
    assert given.decode["decode-0"].num_preempted == 1
    assert given.records.ended[0] == pytest.approx(held.records.ended[0], abs=0.2)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_nothing_is_lost_whatever_pauses(policy: str) -> None:
    load = workload(150, seed=5)
    pauses = [(1 + i % 40, 0.1 + i % 7 / 3) if i % 3 else None for i in range(150)]
    paused = Workload("paused", load.prompt_tokens, load.output_tokens, load.max_tokens, pauses=pauses)
    cancels = {i: 1.0 + i / 20 for i in range(0, 150, 10)}
    simulation = Simulation(
        cluster(pages=40, max_jobs=4, host_memory_bytes=HOST_BYTES, decode=2), paused,
        Arrivals(poisson(150, 10.0), cancels=cancels), config=patient_config(policy=policy, worker_timeout_seconds=1.0),
        failures=[Failure("decode-1", 4.0, 6.0)], heartbeat_seconds=0.2, predictor=Guarded(SimOracle()),
    )  # fmt: skip
    records = simulation.run()  # ends by asserting that nothing is left
    assert list(records.status).count(DONE) > 100


def test_a_sequence_halts_by_itself_and_goes_on() -> None:
    model = DecodeModel((1.0, 0.0, 0.0))
    model.add(Sequence("a", 10, 5, halts_after=2))
    model.add(Sequence("b", 10, 4))
    for name in "ab":
        model.start(name, 0.0)
    model.change(0.0)
    assert model.next_change == 2.0
    assert model.change(2.0) == ([], [], [], ["a"])
    assert model.progress("a", 3.0) == (12, 3)
    model.start("a", 2.5)
    assert model.change(3.0) == ([], [], [], [])
    assert model.change(4.0).finished == ["b"]
    assert model.next_change == 6.0
    assert model.change(6.0).finished == ["a"]
