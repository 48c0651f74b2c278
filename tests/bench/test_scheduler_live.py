"""`--against-live` without a cluster: costs are found again in records that were made with known ones. The whole of it is slow."""

from __future__ import annotations

import random

import pytest
from rich.console import Console

from bench.record import RequestRecord
from bench.sim_fit import Fit, fit_costs
from bench.sim_live import LiveOptions, compare, print_live, run_live, sim_cluster, simulate, workload_of
from packhorse.errors import ConfigError
from scheduler.cost import WorkerPrior

PREFILL, STEP, SHIP, BESIDE = (0.003, 2e-4), (0.004, 0.0015), 0.02, 0.01
COST = WorkerPrior((0.003, 2e-4, 0.0), (0.004, 0.0, 0.0015), (0.02, 4e-10))


def made(count: int, concurrency: int, seed: int) -> list[RequestRecord]:
    """A closed loop in which `concurrency` requests always run; a step takes STEP[0] + STEP[1] * concurrency."""
    rng, records, free = random.Random(seed), [], [0.0] * concurrency
    for index in range(count):
        slot = free.index(min(free))
        prompt, output = rng.randint(20, 400), rng.randint(20, 60)
        prefill = PREFILL[0] + PREFILL[1] * prompt
        first = free[slot] + BESIDE + prefill
        step = STEP[0] + STEP[1] * concurrency
        times = [first, *(first + SHIP + step * (i + 1.5) for i in range(output - 1))]
        records.append(
            RequestRecord(
                index, free[slot], output, sent=free[slot], first_token=first, last_token=times[-1], finished=times[-1],
                chunk_times=times, prompt_tokens=prompt, completion_tokens=output, status="ok",
                kv_transfer={"prefill_seconds": prefill},
            )
        )  # fmt: skip
        free[slot] = times[-1]
    return records


def test_costs_are_found_again() -> None:
    parts = [made(24, 1, 0), made(40, 4, 1), made(64, 8, 2)]
    alone = sum(PREFILL[0] + PREFILL[1] * (r.prompt_tokens or 0) for part in parts for r in part) / 128
    fit = fit_costs(parts, lambda cost: alone)
    a, b, c = fit.cost.prefill
    assert a + b * 200 + c * 200**2 == pytest.approx(PREFILL[0] + PREFILL[1] * 200, rel=0.05)
    a, b, c = fit.cost.decode
    for batch in (1, 4, 8):
        assert a + b * batch * 230 + c * batch == pytest.approx(STEP[0] + STEP[1] * batch, rel=0.15)
    assert fit.cost.transfer[0] == pytest.approx(SHIP, rel=0.01)
    assert fit.overhead_seconds == pytest.approx(BESIDE, rel=0.01)


def test_what_is_slow_at_times_is_in_the_mean() -> None:
    """One step in ten takes ten times as long; a robust fit would leave that out."""
    part = made(40, 1, 0)
    step = STEP[0] + STEP[1]
    for index, record in enumerate(part):
        slower = 10.0 if index % 10 == 0 else 1.0
        first = record.chunk_times[1]
        record.chunk_times[1:] = [first + slower * step * i for i in range(len(record.chunk_times) - 1)]
    apart = [[record] for record in part]
    a, b, c = fit_costs(apart, lambda cost: 0.0).cost.decode
    total = sum((record.chunk_times[-1] - record.chunk_times[1]) for record in part)
    fitted = sum(
        (a + b * ((r.prompt_tokens or 0) + r.completion_tokens / 2) + c) * (r.completion_tokens - 2) for r in part
    )
    assert fitted == pytest.approx(total, rel=0.1)


def test_records_without_a_step_or_a_prefill_cannot_be_fitted() -> None:
    (record,) = made(1, 1, 0)
    record.chunk_times = record.chunk_times[:2]
    with pytest.raises(ValueError, match="tokens"):
        fit_costs([[record]], lambda cost: 0.0)
    record.kv_transfer = None
    with pytest.raises(ValueError, match="prefill"):
        fit_costs([[record]], lambda cost: 0.0)


def test_a_request_alone_is_predicted_as_it_was() -> None:
    parts = [made(6, 1, 3), made(6, 1, 4)]
    result = compare(parts, Fit(COST, BESIDE), "k4v2")
    assert abs(result["error"]) < 0.1
    assert result["predicted_ttft_seconds"]["mean"] == pytest.approx(result["measured_ttft_seconds"]["mean"], rel=0.05)
    assert len(workload_of(parts)) == 12


def test_parts_do_not_meet_in_the_simulation() -> None:
    part = made(6, 1, 3)
    alone = simulate(sim_cluster(COST), [part], "k4v2")
    both = simulate(sim_cluster(COST), [part, part], "k4v2")
    jct = [end - begin for begin, end in zip(both.arrived, both.ended, strict=True)]
    assert jct == pytest.approx([end - begin for begin, end in zip(alone.arrived, alone.ended, strict=True)] * 2)


@pytest.mark.parametrize(("field", "said"), [({"repeats": 0}, "repeats=0"), ({"requests": 3}, "requests=3")])
def test_options_that_leave_nothing_to_measure_are_refused(field: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LiveOptions(**field)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_live_cluster_is_measured_and_simulated() -> None:
    result = run_live(LiveOptions(requests=16, repeats=1, parts=2, calibration=12))
    assert (
        -1.0 < result["worst_error"] < 10.0
    )  # a machine that is busier at times; how near it is, is the benchmark's to say
    print_live(result, Console(quiet=True))
