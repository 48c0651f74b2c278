"""`--against-live` without a cluster: costs are found again in records that were made with known ones. The whole of it is slow."""

from __future__ import annotations

import random

import pytest
from rich.console import Console

from bench.record import RequestRecord
from bench.sim_live import LiveOptions, fit_costs, print_live, run_live, sim_cluster, simulate, workload_of

PREFILL, STEP, SHIP, BESIDE = (0.003, 2e-4), (0.004, 0.0015), 0.02, 0.01


def made(count: int, concurrency: int, seed: int) -> list[RequestRecord]:
    """A closed loop in which `concurrency` requests always run; a step takes STEP[0] + STEP[1] * concurrency."""
    rng, records, free = random.Random(seed), [], [0.0] * concurrency
    for index in range(count):
        slot = free.index(min(free))
        prompt, output = rng.randint(20, 400), rng.randint(20, 60)
        prefill = PREFILL[0] + PREFILL[1] * prompt
        first = free[slot] + BESIDE + prefill
        step = STEP[0] + STEP[1] * concurrency
        times = [first, *(first + SHIP + step * (i + 1) for i in range(output - 1))]
        records.append(
            RequestRecord(
                index, 0.0, output, sent=free[slot], first_token=first, last_token=times[-1], finished=times[-1],
                chunk_times=times, prompt_tokens=prompt, completion_tokens=output, status="ok",
                kv_transfer={"prefill_seconds": prefill},
            )
        )  # fmt: skip
        free[slot] = times[-1]
    return records


def test_costs_are_found_again() -> None:
    fit = fit_costs([(1, made(24, 1, 0)), (4, made(40, 4, 1)), (8, made(64, 8, 2))])
    a, b, c = fit.cost.prefill
    assert a + b * 200 + c * 200**2 == pytest.approx(PREFILL[0] + PREFILL[1] * 200, rel=0.05)
    a, b, c = fit.cost.decode
    for batch in (1, 4, 8):
        assert a + b * batch * 230 + c * batch == pytest.approx(STEP[0] + STEP[1] * batch, rel=0.15)
    assert fit.cost.transfer[0] == pytest.approx(SHIP, rel=0.01)
    assert fit.overhead_seconds == pytest.approx(BESIDE, rel=0.01)


def test_a_request_alone_is_predicted_as_it_was() -> None:
    rounds = [(1, made(24, 1, 0)), (4, made(40, 4, 1))]
    fit, records = fit_costs(rounds), made(12, 1, 3)
    for record in records:
        record.scheduled = record.sent or 0.0
    predicted = simulate(sim_cluster(fit.cost), records, fit, "k4v2")
    measured = [record.jct for record in records]
    assert sum(predicted) == pytest.approx(sum(measured), rel=0.1)
    assert len(workload_of(records)) == 12


@pytest.mark.slow
def test_a_live_cluster_is_measured_and_simulated() -> None:
    result = run_live(LiveOptions(requests=30))
    assert abs(result["error"]) < 1.0  # a busy machine; how near it is, is the benchmark's to say
    print_live(result, Console(quiet=True))
