"""Predictions as distributions, and the queue between jobs that end and what learns from them."""

from __future__ import annotations

import pytest

from scheduler.predictor.base import LEARN_BATCH, LEVELS, QUEUE_JOBS, JobFeatures, Prediction
from tests.scheduler.predictor.fakes import Constant

SPREAD = Prediction((5, 10, 25, 50, 75, 90, 95, 99), 50, -4, "test")


def test_quantiles_are_linear_between_the_levels() -> None:
    assert [SPREAD.quantile(level) for level in LEVELS] == list(SPREAD.lengths)
    assert SPREAD.quantile(0.3) == pytest.approx(30)
    assert SPREAD.quantile(0.0) == 5
    assert SPREAD.quantile(1.0) == 99
    assert (SPREAD.p10, SPREAD.p50, SPREAD.p90) == (10, 50, 90)


def test_level_is_the_inverse() -> None:
    for level in (0.05, 0.2, 0.5, 0.77, 0.98):
        assert SPREAD.level(SPREAD.quantile(level)) == pytest.approx(level)
    assert SPREAD.level(4) == 0.0
    assert SPREAD.level(1000) == LEVELS[-1]


def test_a_certain_length() -> None:
    certain = Prediction.certain(7, "test")
    assert {certain.quantile(level / 10) for level in range(11)} == {7.0}
    assert certain.score > Prediction.certain(8, "test").score


def test_truncated_by_default_at_the_limit() -> None:
    predictor = Constant(1)
    for tokens, truncated in ((9, None), (10, None), (10, False)):
        predictor.observe(JobFeatures((1,), max_tokens=10), tokens, truncated)
    predictor.learn()
    assert [seen.truncated for seen in predictor.told] == [False, True, False]


def test_the_queue_is_bounded() -> None:
    predictor = Constant(1)
    for _ in range(QUEUE_JOBS + 3):
        predictor.observe(JobFeatures((1,)), 5)
    assert (predictor.pending, predictor.dropped) == (QUEUE_JOBS, 3)
    assert predictor.learn() == predictor.learned == QUEUE_JOBS
    assert predictor.pending == 0


class Slow(Constant):
    """Takes a second of a fake clock for each job."""

    def __init__(self) -> None:
        super().__init__(1)
        self.now, self.batches = 0.0, []
        self._clock = lambda: self.now

    def learn_batch(self, batch) -> None:  # type: ignore[no-untyped-def]
        self.now += len(batch)
        self.batches.append(len(batch))


def test_learning_keeps_to_its_budget() -> None:
    predictor = Slow()
    for _ in range(500):
        predictor.observe(JobFeatures((1,)), 5)
    predictor.learn(0.5)  # it does not know yet how long a job takes
    for _ in range(12):
        predictor.learn(0.0)  # makes progress even so
    assert predictor.batches[-12:] == [1] * 12
    before = predictor.now
    predictor.learn(10.0)
    assert 5 <= predictor.now - before <= 12
    predictor.learn()
    assert predictor.pending == 0
    assert max(predictor.batches) == LEARN_BATCH


def test_features_of_a_message() -> None:
    from transport.messages import Job, Sampling

    job = Job(job_id="a", prompt=(1, 2, 3), sampling=Sampling(max_tokens=17, seed=0), reply_to="tcp://127.0.0.1:1")
    features = JobFeatures.of(job)
    assert (features.length, features.max_tokens, features.actual_tokens) == (3, 17, None)
    assert JobFeatures(prompt_tokens=40).length == 40
