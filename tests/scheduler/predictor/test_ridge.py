"""Ridge regression in slices: the exact solution, whenever the work for it was done, and the means that it is there for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.linear_model import Ridge as Exact

from scheduler.predictor import JobFeatures
from scheduler.predictor.base import Floats
from scheduler.predictor.features import COLUMNS, Featurizer, Rows, buckets
from scheduler.predictor.learned import Learned
from scheduler.predictor.replay import Replay
from scheduler.predictor.ridge import ALPHA, BLOCK, BUILD, FIXED, PAID, POWERS, Ridge
from tests.scheduler.predictor.fakes import made_traffic, teach


def filled(count: int, seed: int = 0) -> tuple[Replay, Featurizer, Rows, Floats]:
    """`count` samples, their rows, and their lengths in tokens."""
    jobs, lengths = made_traffic(count, seed=seed)
    replay, featurizer = Replay(seed), Featurizer()
    prompts = [buckets(job) for job in jobs]
    featurizer.count(prompts)
    for job, prompt, tokens in zip(jobs, prompts, lengths, strict=True):
        replay.add(prompt, job.length, float(np.log(tokens)), truncated=False)
    return replay, featurizer, featurizer.rows(prompts, [job.length for job in jobs]), np.array(lengths, float)


def solved(ridge: Ridge) -> Ridge:
    before = ridge.solution
    while ridge.solution is before:
        ridge.advance(1)
    return ridge


def test_the_solution_is_that_of_a_direct_solver() -> None:
    replay, featurizer, rows, lengths = filled(700)
    solution = solved(Ridge(replay, featurizer)).solution
    assert solution is not None
    matrix = csr_array((rows.values, rows.columns, np.append(rows.starts, len(rows.columns))), shape=(700, COLUMNS))
    for power, logs in zip(POWERS, solution.log_lengths(rows), strict=True):
        targets = lengths**power
        spread = targets.std()
        exact = Exact(alpha=ALPHA, fit_intercept=False).fit(matrix, (targets - targets.mean()) / spread)
        expected = np.maximum(exact.predict(matrix) * spread + targets.mean(), 1.0)
        assert np.exp(logs * power) == pytest.approx(expected, rel=0.01, abs=0.05 * spread)


def test_work_comes_in_slices_and_no_more_than_jobs_pay_for() -> None:
    replay, featurizer, _, _ = filled(3000)
    ridge = Ridge(replay, featurizer)
    most = BUILD * BLOCK + FIXED
    jobs = 0
    while ridge.solution is None:
        ridge.advance(1)
        assert -most < ridge._paid <= PAID
        jobs += 1
    assert 20 < jobs < 3000 / 4


def test_the_next_solution_starts_from_the_last_one() -> None:
    def work(ridge: Ridge) -> int:
        return sum(done for done in ridge._solve())

    replay, featurizer, _, _ = filled(1500)
    ridge = Ridge(replay, featurizer)
    first, again = work(ridge), work(ridge)
    assert again < first / 2
    jobs, lengths = made_traffic(150, seed=9)
    for job, tokens in zip(jobs, lengths, strict=True):
        replay.add(buckets(job), job.length, float(np.log(tokens)), truncated=False)
    assert work(ridge) < work(Ridge(replay, featurizer))


def test_samples_that_were_replaced_are_forgotten() -> None:
    replay, featurizer = Replay(0, capacity=4), Featurizer()
    ridge = Ridge(replay, featurizer)
    for number in range(11):
        jobs, _ = made_traffic(1, seed=number)
        featurizer.count([buckets(jobs[0])])
        replay.add(buckets(jobs[0]), 5, float(number), truncated=False)
        solved(ridge)
    assert [sample.serial for sample in replay.newest()] == [7, 8, 9, 10]
    solved(ridge)  # the last one was begun before the last job came
    assert ridge._serials.tolist() == [7, 8, 9, 10]


def test_what_is_taken_over_replaces_what_was_there() -> None:
    replay, featurizer, rows, _ = filled(200)
    first, second = solved(Ridge(replay, featurizer)), Ridge(replay, featurizer)
    second.advance(1)  # begins one of its own
    second.restore(first.state())
    assert first.solution is not None
    assert second.solution is not None
    assert (second.solution.log_lengths(rows) == first.solution.log_lengths(rows)).all()
    second.restore({})
    assert second.solution is None
    with pytest.raises(ValueError, match="serials do not ascend"):
        second.restore({**first.state(), "serials": np.zeros(200, np.int64)})


def test_learned_knows_the_mean_of_a_kind_of_prompt_that_sometimes_gets_a_long_answer() -> None:
    """Both kinds have the same median; a sixth of the one kind's answers are ten times as long."""
    rng = np.random.default_rng(0)
    rare = rng.random(3000) < 1 / 6
    prompts = [tuple(rng.integers(100, 900, 5).tolist()) for _ in range(3000)]
    jobs = [JobFeatures((7 + number % 2, 3, *prompt), 2000) for number, prompt in enumerate(prompts)]
    lengths = [int(rng.integers(60, 100)) * (10 if number % 2 and rare[number] else 1) for number in range(3000)]
    predictor = Learned()
    teach(predictor, jobs[:2600], lengths[:2600])
    said = [predictor.predict(job) for job in jobs[2600:]]
    means, medians = (
        [np.mean([getattr(p, name) for p in said[kind::2]]) for kind in (0, 1)] for name in ("mean", "p50")
    )
    assert means[1] > 1.6 * means[0]
    assert medians[1] < 1.5 * medians[0]
