"""Means of steps for the cost model."""

from __future__ import annotations

from typing import Any

import pytest

from decode.engine import Step
from decode.means import StepMeans


def step(jobs: int, seconds: float, context_tokens: int, failed: int = 0) -> Step:
    anything: Any = None
    return Step([(anything, anything)] * jobs, [(anything, anything)] * failed, seconds, context_tokens)


def test_means_over_good_steps() -> None:
    means = StepMeans()
    assert (means.step_seconds, means.step_context_tokens, means.step_jobs) == (0, 0, 0)
    means.add(step(1, 0.1, 10))
    means.add(step(3, 0.3, 50))
    means.add(step(3, 9.0, 50, failed=1))
    means.add(step(0, 9.0, 0))
    means.add(Step([], [], 0.2, 30, replayed=2))
    assert (means.step_seconds, means.step_context_tokens, means.step_jobs) == pytest.approx((0.2, 30, 2))
