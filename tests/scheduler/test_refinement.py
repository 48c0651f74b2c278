"""Scores in heartbeats refine the forecasts of running jobs, and nothing else."""

from __future__ import annotations

import gc

import pytest
from pydantic import ValidationError

from scheduler.forecast import LEVELS, Forecast
from scheduler.jobs import TrackedJob
from scheduler.policies import Room
from scheduler.refinement import Refinement
from tests.scheduler.fakes import Bench, decode_info, make_job, prefill_info
from transport.messages import Heartbeat, LengthScore, WorkerLoad

EARLY, LATE = (0.9, *(0.1 / 9,) * 9), (*(0.1 / 9,) * 9, 0.9)


def score(generated: int, probabilities: tuple[float, ...] = EARLY, span_tokens: int = 200) -> LengthScore:
    return LengthScore(generated=generated, span_tokens=span_tokens, probabilities=probabilities)


def running(bench: Bench, job_id: str, max_tokens: int = 200) -> TrackedJob:
    bench.submit(make_job(job_id, max_tokens=max_tokens))
    bench.reserved(job_id=job_id)
    bench.prefilled(job_id=job_id, completion_tokens=1)
    return bench.core.jobs[job_id]


def hear(bench: Bench, job_id: str, *scores: LengthScore) -> None:
    for each in scores:
        load = WorkerLoad(generated={job_id: each.generated}, scores={job_id: each, "unknown": each})
        bench.hear(b"d1", Heartbeat(worker_id="d1", load=load))


def make_bench(**config: object) -> Bench:
    return Bench(prefill_info("p1"), decode_info("d1", capacity_pages=999), **config)


@pytest.mark.parametrize("predictor", ["none", "percentile"])
@pytest.mark.parametrize("probabilities", [EARLY, LATE])
def test_scores_move_the_forecast_and_it_stays_a_forecast(predictor: str, probabilities: tuple[float, ...]) -> None:
    bench = make_bench(predictor=predictor)
    job = running(bench, "j")
    for generated in range(8, 210, 8):
        hear(bench, "j", score(generated, probabilities))
        tokens = job.forecast.tokens
        assert list(tokens) == sorted(tokens)
        assert min(generated, 200) <= tokens[0]
        assert tokens[-1] <= 200
        left = 200 - job.progress.generated
        assert 1 <= job.forecast.remaining(0.5, job.progress.generated) <= max(1, left)
        if generated == 80:
            middle = job.forecast.remaining(0.5, 80)
            assert middle < 20 if probabilities is EARLY else middle > 100


def test_policies_run_first_what_is_scored_to_end_first() -> None:
    bench = make_bench(policy="trail", predictor="percentile")
    first, second = running(bench, "first"), running(bench, "second")
    hear(bench, "first", score(8, LATE), score(16, LATE))
    hear(bench, "second", score(8), score(16))
    plan = bench.core.policy.plan([first, second], Room(999, 1), bench.now)
    assert [job.job_id for job in plan.run] == ["second"]


def test_what_was_predicted_is_still_judged_and_counted_by_the_first_forecast() -> None:
    bench = make_bench(predictor="percentile", policy="packhorse")
    job = running(bench, "j")
    said, context, order = job.forecast.quantile(0.5), job.context_tokens, job.forecast.score
    hear(bench, "j", score(8), score(16))
    assert job.forecast.quantile(0.5) < said
    assert (job.context_tokens, job.forecast.score) == (context, order)
    bench.decoded(job_id="j", completion_tokens=20)
    errors = bench.core.status(bench.now).predictions["output_tokens"]
    assert errors.bias == pytest.approx((said - 20) / 20)


def test_scores_that_are_old_or_of_other_bins_or_deny_all_change_nothing() -> None:
    bench = make_bench()
    job = running(bench, "j")
    hear(bench, "j", score(16))
    known = job.forecast
    hear(
        bench, "j", score(16), score(8, LATE), score(24, (0.5, 0.5)), score(24, span_tokens=100), score(24, (0.0,) * 10)
    )
    assert job.forecast is known


def test_without_scores_nothing_changes() -> None:
    bench = make_bench(predictor="percentile")
    job = running(bench, "j")
    before = job.forecast
    bench.hear(b"d1", Heartbeat(worker_id="d1", load=WorkerLoad(generated={"j": 50})))
    assert job.forecast is before


def test_beliefs_go_with_their_jobs() -> None:
    bench = make_bench()
    hear(bench, running(bench, "j").job_id, score(8))
    beliefs = vars(vars(bench.core.experience)["_refinement"])["_scored"]
    assert len(beliefs) == 1
    bench.decoded(job_id="j", completion_tokens=9)
    bench.assert_idle()
    gc.collect()
    assert len(beliefs) == 0


def test_a_first_forecast_is_the_forecast_until_the_first_score() -> None:
    bench = make_bench()
    job = running(bench, "j")
    refinement = Refinement(informed=False)
    before = job.forecast
    assert refinement.first(job) is before
    assert refinement.take(job, score(8))
    assert refinement.first(job) is before
    assert job.forecast is not before


@pytest.mark.parametrize(
    "fields",
    [{"generated": 0}, {"span_tokens": 0}, {"probabilities": (1.0,)}, {"probabilities": (0.5, float("nan"))},
     {"probabilities": (0.5, 1.5)}, {"probabilities": (0.1,) * 65}],
)  # fmt: skip
def test_a_score_that_makes_no_sense_is_refused_on_the_wire(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        LengthScore.model_validate({"generated": 8, "span_tokens": 512, "probabilities": EARLY, **fields})


def test_a_forecast_knows_what_it_cannot_fall_short_of() -> None:
    made = Forecast.made([110, 120, 130, 140, 150], 200, least=100)
    assert made.share_below(100) == 0
    assert made.remaining(0.5, 100) == 30
    assert made.quantile(0.05) == 105
    assert 1 <= made.gittins(100) <= 100
    assert Forecast.made([5] * len(LEVELS), 200, least=100).least == 5
