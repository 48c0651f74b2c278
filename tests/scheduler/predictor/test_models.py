"""Regressor, ranker, percentile and calibration on traffic whose law is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from packhorse.errors import ConfigError
from scheduler.predictor import PREDICTORS, make_predictor
from scheduler.predictor.base import JobFeatures
from scheduler.predictor.calibration import Calibration
from scheduler.predictor.rank import RankLoss, list_mle_slopes
from scheduler.predictor.replay import Sample
from tests.scheduler.predictor.fakes import made_traffic, teach

LEARNERS = ("regressor", "rank", "retrieval", "learned")


def tau(predictor, jobs, lengths) -> float:  # type: ignore[no-untyped-def]
    return kendalltau([-predictor.predict(job).score for job in jobs], lengths).statistic


@pytest.mark.parametrize("name", LEARNERS)
def test_learns_which_jobs_are_long(name: str) -> None:
    jobs, lengths = made_traffic(1400, seed=1)
    predictor = make_predictor(name, seed=0)
    teach(predictor, jobs[:1000], lengths[:1000])
    assert tau(predictor, jobs[1000:], lengths[1000:]) > 0.65
    said = [predictor.predict(job) for job in jobs[1000:]]
    errors = [abs(p.p50 - n) for p, n in zip(said, lengths[1000:], strict=True)]
    assert np.mean(errors) < 0.5 * np.mean(np.abs(np.array(lengths[1000:]) - np.median(lengths[:1000])))
    assert (predictor.replaced, predictor.failed) == (0, 0)


@pytest.mark.parametrize("name", ["regressor", "rank", "learned"])
def test_quantiles_cover_what_they_claim(name: str) -> None:
    jobs, lengths = made_traffic(3000, seed=2)
    predictor = make_predictor(name)
    teach(predictor, jobs[:2000], lengths[:2000])
    said = [predictor.predict(job) for job in jobs[2000:]]
    inside = np.mean([p.p10 <= n <= p.p90 for p, n in zip(said, lengths[2000:], strict=True)])
    assert 0.7 < inside < 0.97  # 0.8 is claimed; estimates go on improving after their errors were taken
    assert np.mean([p.mean for p in said]) == pytest.approx(np.mean(lengths[2000:]), rel=0.15)


@pytest.mark.parametrize("name", PREDICTORS)
def test_says_something_sensible_before_anything_was_seen(name: str) -> None:
    said = make_predictor(name).predict(JobFeatures((1, 2, 3), 100, actual_tokens=60))
    assert 1 <= said.p10 <= said.p50 <= said.p90 <= 100
    assert 1 <= said.mean <= 100


@pytest.mark.parametrize("name", LEARNERS)
def test_the_first_jobs_already_help(name: str) -> None:
    predictor = make_predictor(name)
    jobs, _ = made_traffic(64, seed=3)
    teach(predictor, jobs[:32], [40] * 32)
    assert all(20 <= predictor.predict(job).p50 <= 80 for job in jobs[32:])


@pytest.mark.parametrize("name", LEARNERS)
def test_lengths_alone_will_do(name: str) -> None:
    rng = np.random.default_rng(4)
    sizes = rng.integers(10, 4000, size=1500)
    jobs = [JobFeatures(max_tokens=4096, prompt_tokens=int(n)) for n in sizes]
    predictor = make_predictor(name)
    teach(predictor, jobs[:1200], (sizes[:1200] // 4 + 1).tolist())
    assert tau(predictor, jobs[1200:], sizes[1200:]) > 0.6


@pytest.mark.parametrize("name", LEARNERS)
def test_equal_seeds_and_histories_give_equal_predictions(name: str) -> None:
    jobs, lengths = made_traffic(600, seed=5)
    twins = [make_predictor(name, seed=7) for _ in range(2)]
    for predictor in twins:
        teach(predictor, jobs[:500], lengths[:500])
    assert [twins[0].predict(job) for job in jobs[500:]] == [twins[1].predict(job) for job in jobs[500:]]


@pytest.mark.parametrize("name", [name for name in PREDICTORS if name != "oracle"])
def test_nobody_but_the_oracle_sees_the_truth(name: str) -> None:
    jobs, lengths = made_traffic(300, seed=6)
    told = [JobFeatures(job.prompt, job.max_tokens, actual_tokens=n) for job, n in zip(jobs, lengths, strict=True)]
    blind, sighted = make_predictor(name), make_predictor(name)
    teach(blind, jobs[:200], lengths[:200])
    teach(sighted, told[:200], lengths[:200])
    assert [blind.predict(job) for job in jobs[200:]] == [sighted.predict(job) for job in told[200:]]


def test_the_oracle_knows_and_says_when_it_cannot() -> None:
    oracle = make_predictor("oracle")
    assert oracle.predict(JobFeatures((1,), 100, actual_tokens=42)).quantile(0.9) == 42
    with pytest.raises(ConfigError, match="predictor=oracle"):
        oracle.predict(JobFeatures((1,), 100))


def test_percentile_follows_the_newest_traffic() -> None:
    predictor = make_predictor("percentile")
    teach(predictor, [JobFeatures((1,), 4096)] * 5000, [3000] * 2500 + list(range(1, 2501)))
    said = predictor.predict(JobFeatures((9,), 4096))
    assert said.p50 == pytest.approx(2500 - 1024, abs=2)
    assert predictor.predict(JobFeatures((9,), 100)).p90 == 100


@pytest.mark.parametrize("name", ["regressor", "rank", "retrieval", "learned"])
def test_truncated_jobs_do_not_pull_down(name: str) -> None:
    """Half of the jobs are cut at 50 tokens; the others show that this topic comes to 400."""
    topic = [JobFeatures((5, *range(i, i + 6)), 50 if i % 2 else 1000) for i in range(600)]
    predictor = make_predictor(name)
    teach(predictor, topic[:500], [50 if job.max_tokens == 50 else 400 for job in topic[:500]])
    assert predictor.predict(JobFeatures(topic[500].prompt, 1000)).p50 > 250
    assert predictor.predict(JobFeatures(topic[499].prompt, 1000)).p50 > 250, "that very prompt was cut"


@pytest.mark.parametrize("name", ["regressor", "rank", "retrieval", "learned"])
def test_truncated_jobs_pull_up(name: str) -> None:
    """Their limits rise: all that is known of the newest is that they are longer than the ones before."""
    limits = [20 if i < 300 else 1000 for i in range(600)]
    topic = [JobFeatures((5, *range(i, i + 6)), limit) for i, limit in enumerate(limits)]
    predictor = make_predictor(name)
    teach(predictor, topic, limits)
    assert predictor.predict(JobFeatures((5, *range(9000, 9006)), 4000)).p50 > 500


def test_a_list_of_truncated_jobs_alone_ranks_nothing() -> None:
    loss = RankLoss(seed=0)
    loss.start(np.array([5.0]))
    cut = [Sample(i, np.empty(0, np.uint32), 9, 2.0, True) for i in range(4)]
    assert not loss.slopes(np.zeros(4), cut).any()


def test_list_mle_slopes_are_the_derivatives() -> None:
    rng = np.random.default_rng(0)
    scores, order = rng.standard_normal(7), rng.permutation(7)

    def loss(s: np.ndarray) -> float:
        g = s[order]
        return -sum(g[i] - np.log(np.exp(g[i:]).sum()) for i in range(len(g)))

    steps = 1e-5 * np.eye(7)
    numeric = [(loss(scores + step) - loss(scores - step)) / 2e-5 for step in steps]
    assert list_mle_slopes(scores, order) == pytest.approx(numeric, abs=1e-6)
    assert np.isfinite(list_mle_slopes(np.array([0.0, 800.0, -800.0]), np.arange(3))).all()


def test_calibration_is_local_and_lends_to_empty_bins() -> None:
    rng = np.random.default_rng(0)
    calibration = Calibration()
    assert not calibration
    low, high = rng.uniform(1, 2, 2000), rng.uniform(6, 7, 2000)
    errors = np.concatenate([rng.normal(0, 0.1, 2000), rng.normal(0, 1.0, 2000)])
    calibration.add(np.concatenate([low, high]), errors)
    sure, unsure, between = (calibration.prediction(x, 100_000, "test") for x in (1.5, 6.5, 20.0))
    assert sure.p90 / sure.p10 == pytest.approx(np.exp(2 * 1.28 * 0.1), rel=0.1)
    assert unsure.p90 / unsure.p10 == pytest.approx(np.exp(2 * 1.28 * 1.0), rel=0.3)
    assert between.p50 == 100_000


def test_names_and_options_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"predictor='best' is not one of none, percentile"):
        make_predictor("best")
    with pytest.raises(ConfigError, match="embedding=x: predictor rank embeds nothing"):
        make_predictor("rank", embedding="x")
