"""Predictors that are wrong on purpose: the packhorse policy does not lose to first come, first served, and starves nobody."""

from __future__ import annotations

import math
from functools import cache

import pytest

from bench.scheduler import Grid
from bench.sim_adversaries import ADVERSARIES, made_up
from bench.sim_options import Case, SchedulerOptions
from bench.sim_predictor import Remembered
from scheduler.policies.packhorse import MAX_WAIT_SECONDS
from scheduler.predictor import JobFeatures
from scheduler.predictor.guard import Guarded
from scheduler.simulator.prompts import SimPrompt

REQUESTS, SEED = 600, 3


@cache
def grid() -> Grid:
    return Grid(SchedulerOptions(requests=REQUESTS, frozen=True))


@cache
def figures(policy: str, predictor: str, load: float) -> dict[str, float]:
    record = grid().run(Case("synthetic", "raw", predictor, "least-loaded", policy, load, None), SEED)
    assert record["completed"] == REQUESTS
    return record


@pytest.mark.parametrize("load", [0.9, 1.1])
@pytest.mark.parametrize("name", ADVERSARIES)
def test_packhorse_never_loses_to_fcfs_by_more_than_a_tenth(name: str, load: float) -> None:
    fcfs, misled = figures("fcfs", "none", load), figures("packhorse", name, load)
    assert misled["mean_jct_seconds"] <= 1.1 * fcfs["mean_jct_seconds"]
    assert misled["max_wait_seconds"] <= MAX_WAIT_SECONDS + fcfs["max_wait_seconds"]


def test_without_the_check_on_itself_a_reversed_predictor_would_cost_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound above is no gift of the workload."""
    fcfs, misled = figures("fcfs", "none", 1.1), figures("srpt-oracle", "reversed", 1.1)
    assert misled["mean_jct_seconds"] > 1.2 * fcfs["mean_jct_seconds"]


def feature(output_tokens: int) -> JobFeatures:
    return JobFeatures(SimPrompt.of_length(10, output_tokens), 512)


def test_adversaries_are_what_they_are_called() -> None:
    said = {name: Guarded(maker(0)) for name, maker in ADVERSARIES.items()}
    assert said["reversed"].predict(feature(10)).mean > said["reversed"].predict(feature(500)).mean
    assert len({said["constant"].predict(feature(tokens)).mean for tokens in (10, 500)}) == 1
    assert math.isfinite(said["nan"].predict(feature(10)).mean)
    assert said["nan"].replaced == 1
    assert len({said["random"].predict(feature(10)).mean for _ in range(20)}) > 10
    assert made_up("learned", 0) is None


def test_noise_is_of_the_size_that_its_name_says() -> None:
    noisy = made_up("sigma-0.5", 0)
    assert noisy is not None
    errors = [math.log(noisy.predict(feature(100)).p50 / 100) for _ in range(2000)]
    assert math.sqrt(sum(error**2 for error in errors) / 2000) == pytest.approx(0.5, rel=0.1)


def test_what_was_predicted_is_remembered() -> None:
    inner = Guarded(ADVERSARIES["random"](0))
    remembered = Remembered(inner)
    one, two = (JobFeatures(SimPrompt((1, 2, length), 50), 512) for length in (3, 4))
    assert remembered.predict(one) == remembered.predict(one)
    assert remembered.predict(one) != remembered.predict(two)
