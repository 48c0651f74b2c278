from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from scheduler.predictor.base import LEVELS, JobFeatures, Observation, Prediction
from scheduler.predictor.guard import Guarded
from tests.scheduler.predictor.fakes import Constant, Fake, NotANumber, Raising, Reversed

JOB = JobFeatures((1, 2), 100, actual_tokens=30)


class Foreign(Fake):
    """Fails as torch does."""

    def predict(self, job: JobFeatures) -> Prediction:
        raise RuntimeError("out of memory")

    def learn_batch(self, batch: Sequence[Observation]) -> None:
        raise KeyError("layer")


@pytest.mark.parametrize("inner", [NotANumber(), Constant(float("inf")), Constant(float("-inf")), Raising(), Foreign()])
def test_recent_traffic_stands_in_for_what_is_no_number(inner: Fake) -> None:
    guarded = Guarded(inner)
    for _ in range(50):
        guarded.observe(JOB, 40)
    guarded.learn()
    said = guarded.predict(JOB)
    assert (said.p50, said.source) == (40, "percentile")
    assert (guarded.replaced, guarded.clamped) == (1, 0)


@pytest.mark.parametrize(("tokens", "expected"), [(-5, 1), (0.2, 1), (10_000, 100), (1e300, 100)])
def test_lengths_stay_within_the_job(tokens: float, expected: int) -> None:
    guarded = Guarded(Constant(tokens))
    said = guarded.predict(JOB)
    assert (said.p10, said.p50, said.p90, said.mean) == (expected,) * 4
    assert (guarded.clamped, guarded.replaced) == (1, 0)


def test_quantiles_are_put_in_order() -> None:
    class Upside(Fake):
        def predict(self, job: JobFeatures) -> Prediction:
            return Prediction(tuple(float(90 - 10 * i) for i in range(len(LEVELS))), 50.0, 0.0, "upside")

    said = Guarded(Upside()).predict(JOB)
    assert list(said.lengths) == sorted(said.lengths)


def test_what_is_wrong_but_well_formed_passes() -> None:
    guarded = Guarded(Reversed())
    assert guarded.predict(JOB).p50 == 71
    assert (guarded.clamped, guarded.replaced) == (0, 0)


def test_failing_to_learn_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    guarded = Guarded(Raising())
    with caplog.at_level(logging.ERROR):
        for _ in range(100):
            guarded.observe(JOB, 40)
        assert guarded.learn() == 100
        guarded.predict(JOB)
    assert guarded.failed == 4
    assert len(caplog.records) == 1
    assert "predictor fake cannot learn" in caplog.text


@pytest.mark.parametrize(
    ("inner", "why"), [(Raising(), "ValueError('no idea')"), (NotANumber(), "no number in Prediction")]
)
def test_failing_to_predict_is_counted_and_said_once(inner: Fake, why: str, caplog: pytest.LogCaptureFixture) -> None:
    guarded = Guarded(inner)
    for _ in range(5):
        guarded.predict(JOB)
    assert guarded.replaced == 5
    assert len(caplog.records) == 1
    assert f"predictor fake cannot predict; recent traffic stands in: {why}" in caplog.text


def test_the_inner_predictor_is_told() -> None:
    inner = Constant(5)
    guarded = Guarded(inner)
    guarded.observe(JOB, 40)
    assert guarded.pending == 1
    assert guarded.learn() == 1
    assert [seen.tokens for seen in inner.told] == [40]
    assert guarded.name == "fake"
