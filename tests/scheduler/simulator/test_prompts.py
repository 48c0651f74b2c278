"""Prompts that know their output, what reads them, and what a predictor does to a simulation."""

from __future__ import annotations

import pytest

from packhorse.errors import ConfigError
from scheduler.predictor import JobFeatures, make_predictor
from scheduler.predictor.guard import Guarded
from scheduler.simulator import Arrivals, SimOracle, SimPrompt, Simulation, Workload, patient_config
from tests.scheduler.simulator.worlds import cluster, poisson


def test_a_prompt_has_its_length_without_its_tokens() -> None:
    prompt = SimPrompt.of_length(1_000_000, 7)
    assert (len(prompt), prompt[-1], list(prompt[2:4]), prompt.output_tokens) == (1_000_000, 999_999, [2, 3], 7)


def test_the_oracle_reads_simulated_prompts_alone() -> None:
    oracle = SimOracle()
    assert oracle.predict(JobFeatures(SimPrompt.of_length(10, 7), 100)).p50 == 7
    with pytest.raises(ConfigError, match="oracle"):
        oracle.predict(JobFeatures((1, 2, 3), 100))


def run(predictor: Guarded | None, policy: str = "ssjf", **fields: object) -> Simulation:
    """Short jobs (odd token first) and long ones, faster than they can be served."""
    count = 300
    output = [200 if index % 2 else 10 for index in range(count)]
    prompts = [(index % 2 + 1, 5, 6, 7) for index in range(count)]
    load = Workload("two kinds", [4] * count, output, [256] * count, prompts=prompts)
    simulation = Simulation(
        cluster(),
        load,
        Arrivals(poisson(count, 20.0)),
        config=patient_config(policy=policy),
        predictor=predictor,
        heartbeat_seconds=0.5,
        **fields,  # type: ignore[arg-type]
    )
    simulation.run()
    return simulation


def mean_jct(simulation: Simulation) -> float:
    records = simulation.records
    return sum(end - begin for begin, end in zip(records.arrived, records.ended, strict=True)) / len(records.ended)


def test_short_jobs_first_needs_a_forecast() -> None:
    blind, known = mean_jct(run(None)), mean_jct(run(Guarded(SimOracle())))
    assert blind == pytest.approx(mean_jct(run(None, policy="fcfs")))
    assert known < 0.8 * blind


def test_a_predictor_learns_during_the_run_where_it_may() -> None:
    learning, frozen = make_predictor("regressor"), make_predictor("regressor")
    better, cold = run(learning), run(frozen, learns=False)
    assert learning.learned > 200
    assert frozen.learned == 0
    assert mean_jct(better) < 0.95 * mean_jct(cold)


def test_heartbeats_tell_of_steps() -> None:
    simulation = run(None)
    fitted = simulation.core.experience.cost.worker("decode-0").decode
    assert fitted.num_samples > 10
    a, b, c = simulation.decode["decode-0"].spec.cost.decode
    assert fitted.predict((1, 800, 8)) == pytest.approx(a + b * 800 + c * 8, rel=0.1)
