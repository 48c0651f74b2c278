from __future__ import annotations

import math

import numpy as np
import pytest

from scheduler.predictor.base import Prediction
from scheduler.predictor.refine import Refiner, prior, transition

SPREAD = Prediction((20, 40, 80, 150, 250, 350, 400, 480), 170, 0, "test")


def test_the_first_belief_is_the_prediction() -> None:
    belief = prior(SPREAD, 512, 10)
    assert belief.sum() == pytest.approx(1)
    assert (belief >= 0).all()
    assert belief[:3].sum() == pytest.approx(SPREAD.level(3 * 51.2))
    certain = prior(Prediction.certain(100, "test"), 512, 10)
    assert certain[1] == pytest.approx(1)


def test_the_transition_is_the_papers() -> None:
    one = transition(10, 51.2, 1, False)
    assert one[5, 5] == pytest.approx(1 - 1 / 51.2)
    assert one[5, 4] == pytest.approx(1 / 51.2)
    assert one[0, 0] == 1
    assert one.sum(axis=1) == pytest.approx(np.ones(10))
    assert transition(10, 51.2, 7, False) == pytest.approx(np.linalg.matrix_power(one, 7))
    assert transition(10, 51.2, 1, True)[0, 0] == pytest.approx(1 - 1 / 51.2)


@pytest.mark.parametrize("survival", [False, True])
def test_many_steps_at_once_are_the_same_as_one_by_one(survival: bool) -> None:
    at_once, one_by_one = (Refiner(SPREAD, 512, survival=survival) for _ in range(2))
    at_once.update(40)
    for generated in range(1, 41):
        one_by_one.update(generated)
    assert at_once.belief == pytest.approx(one_by_one.belief)


def test_what_remains_shrinks_and_stays_within_the_limit() -> None:
    refiner = Refiner(SPREAD, 512)
    last = math.inf
    for generated in range(0, 512, 32):
        refiner.update(generated)
        assert 1 <= refiner.remaining <= min(last, 512 - generated)
        assert refiner.quantile(0.1) <= refiner.quantile(0.5) <= refiner.quantile(0.9) <= 512 - generated
        last = refiner.remaining
    refiner.update(600)
    assert refiner.remaining == refiner.quantile(0.9) == 1


def test_scores_tell_jobs_apart_that_the_prompt_did_not() -> None:
    """Weak evidence at every step, towards the truth, must add up."""
    rng = np.random.default_rng(0)
    plain, scored = [], []
    for length in np.clip(np.exp(rng.normal(5, 0.8, 300)), 60, 500):
        blind, seeing = Refiner(SPREAD, 512), Refiner(SPREAD, 512)
        for generated in range(8, 57, 8):
            score = np.full(10, 0.8)
            score[int((length - generated) / 51.2)] = 2.0
            blind.update(generated)
            assert seeing.update(generated, score)
        plain.append(abs(blind.remaining - (length - 56)))
        scored.append(abs(seeing.remaining - (length - 56)))
    assert np.mean(scored) < 0.5 * np.mean(plain)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_scores_that_make_no_sense_are_left_out(bad: float) -> None:
    refiner, untouched = Refiner(SPREAD, 512), Refiner(SPREAD, 512)
    untouched.update(10)
    assert not refiner.update(10, [bad] + [0.1] * 9)
    assert not refiner.update(10, [0.0] * 10)
    assert refiner.belief == pytest.approx(untouched.belief)


def test_bad_calls_are_named() -> None:
    refiner = Refiner(SPREAD, 512)
    refiner.update(10)
    with pytest.raises(ValueError, match="generated=9 after 10"):
        refiner.update(9)
    with pytest.raises(ValueError, match="3 bins for a belief of 10"):
        refiner.update(11, [1.0] * 3)
    with pytest.raises(ValueError, match="max_tokens=0"):
        Refiner(SPREAD, 0)


def test_short_limits() -> None:
    refiner = Refiner(Prediction.certain(2, "test"), 3)
    refiner.update(1)
    assert refiner.remaining >= 1
    refiner.update(3)
    assert refiner.remaining == 1


def test_bins_may_cover_less_than_the_limit_and_a_job_believed_short_can_turn_out_long() -> None:
    refiner = Refiner(Prediction.certain(20, "test"), 4096, span_tokens=512)
    assert refiner.quantile(0.9) < 51.2
    late = [0.01] * 5 + [0.19] * 5
    for generated in range(8, 65, 8):
        refiner.update(generated, late)
    assert 250 < refiner.remaining < 512
    with pytest.raises(ValueError, match="span_tokens=0"):
        Refiner(SPREAD, 512, span_tokens=0)
