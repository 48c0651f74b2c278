"""Workers and links: what is predicted before, while and after they report, and the errors kept for metrics."""

from __future__ import annotations

import random

import pytest

from scheduler.cost import CostModel, ErrorWindow, WorkerPrior

PRIOR = WorkerPrior(prefill=(0.01, 1e-4, 1e-9), decode=(0.02, 1e-7, 1e-4), transfer=(0.001, 1e-9))


def test_a_new_worker_is_predicted_from_its_prior() -> None:
    cost = CostModel()
    worker = cost.add("p", PRIOR)
    assert worker.prefill_seconds(1000) == pytest.approx(0.01 + 0.1 + 0.001)
    assert worker.step_seconds(10_000, 8) == pytest.approx(0.02 + 0.001 + 0.0008)
    assert cost.transfer_seconds("p", "d", 10**9) == pytest.approx(1.001)
    assert cost.worker("unknown").prefill_seconds(1) > 0


def test_a_cached_prefix_costs_its_attention_alone() -> None:
    worker = CostModel().add("p", PRIOR)
    whole, rest = worker.prefill_seconds(2000), worker.prefill_seconds(2000, cached_tokens=1500)
    assert rest == pytest.approx(0.01 + 500 * 1e-4 + (2000**2 - 1500**2) * 1e-9)
    assert rest < whole


def test_each_worker_is_fitted_by_itself() -> None:
    cost, rng = CostModel(PRIOR), random.Random(0)
    for _ in range(200):
        batch, context = rng.randint(1, 64), rng.randint(100, 100_000)
        cost.worker("slow").observe_step(context, batch, 0.1 + 1e-6 * context + 1e-3 * batch)
        cost.worker("fast").observe_step(context, batch, 0.005 + 1e-8 * context + 1e-5 * batch)
    assert cost.worker("slow").step_seconds(50_000, 32) == pytest.approx(0.182, rel=0.03)
    assert cost.worker("fast").step_seconds(50_000, 32) == pytest.approx(0.00582, rel=0.03)
    assert cost.worker("other").step_seconds(50_000, 32) == pytest.approx(0.02 + 0.005 + 0.0032)


def test_a_pair_without_samples_is_predicted_by_what_its_prefill_worker_saw() -> None:
    cost, rng = CostModel(PRIOR), random.Random(0)
    for _ in range(100):
        size = rng.randint(10**6, 10**9)
        cost.observe_transfer("p", "near", size, 0.001 + size / 10e9)
    assert cost.transfer_seconds("p", "near", 10**9) == pytest.approx(0.101, rel=0.03)
    assert cost.transfer_seconds("p", "new", 10**9) == pytest.approx(0.101, rel=0.03)
    for _ in range(100):
        size = rng.randint(10**6, 10**9)
        cost.observe_transfer("p", "far", size, 0.001 + size / 1e9)
    assert cost.transfer_seconds("p", "far", 10**9) == pytest.approx(1.001, rel=0.03)
    assert cost.transfer_seconds("p", "near", 10**9) == pytest.approx(0.101, rel=0.03)


def test_a_forgotten_worker_starts_again_from_the_prior() -> None:
    cost = CostModel(PRIOR)
    cost.observe_transfer("p", "d", 10**9, 50.0)
    cost.forget("d")
    cost.forget("d")
    cost.forget("p")
    assert cost.transfer_seconds("p", "d", 10**9) == pytest.approx(1.001)


def test_forgetting_a_worker_leaves_the_links_of_others() -> None:
    cost = CostModel(PRIOR)
    for prefill in ("p", "q"):
        for decode in ("d", "e"):
            for _ in range(20):
                cost.observe_transfer(prefill, decode, 10**9, 3.0)
    cost.forget("q")
    cost.forget("e")
    assert cost.transfer_seconds("p", "d", 10**9) == pytest.approx(3.0, rel=0.02)
    assert cost.transfer_seconds("p", "e", 10**9) == pytest.approx(3.0, rel=0.1), "what the prefill worker saw"
    assert cost.transfer_seconds("q", "d", 10**9) == pytest.approx(1.001)


def test_errors_are_of_predictions_made_before_the_sample_was_known() -> None:
    cost = CostModel(PRIOR)
    cost.worker("p").observe_prefill(1000, 0.222)
    first = cost.fleet.prefill.summary()
    assert (first.count, first.total) == (1, 1)
    assert first.bias == pytest.approx(-0.5)
    assert first.p50 == first.p90 == pytest.approx(0.5)
    for _ in range(50):
        cost.worker("p").observe_prefill(1000, 0.222)
    later = cost.fleet.prefill.summary()
    assert later.p50 < 0.05


def test_the_window_keeps_the_newest_and_counts_all() -> None:
    window = ErrorWindow(size=4)
    assert window.summary().count == 0
    for actual in (1.0, 2.0, 4.0, 4.0, 4.0, 4.0):
        window.add(2.0, actual)
    summary = window.summary()
    assert (summary.count, summary.total, summary.bias, summary.p90) == (4, 6, -0.5, 0.5)
