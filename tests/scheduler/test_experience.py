"""Forecasts at Submit, learning from what ended, costs from reports; and the explanation of a decision."""

from __future__ import annotations

from pathlib import Path

import pytest

from packhorse.config import SchedulerConfig, build
from packhorse.errors import ConfigError
from scheduler.cost import DEFAULT_PRIOR
from scheduler.experience import TypicalCost
from scheduler.forecast import LEVELS
from scheduler.policies import Room
from scheduler.predictor import LEVELS as PREDICTED_LEVELS
from scheduler.predictor import Prediction
from scheduler.recent import REFRESH_EVERY
from tests.scheduler.fakes import Bench, decode_info, make_job, prefill_info
from transport.messages import Heartbeat, WorkerLoad


def bench(**config: object) -> Bench:
    return Bench(prefill_info("p1"), decode_info("d1"), **config)


def run(bench: Bench, job_id: str, output_tokens: int = 5) -> None:
    bench.submit(make_job(job_id))
    bench.reserved(job_id=job_id)
    bench.prefilled(job_id=job_id, completion_tokens=1, prefill_seconds=0.5, ship_seconds=0.25, bytes_shipped=1000)
    bench.decoded(job_id=job_id, completion_tokens=output_tokens)
    bench.sent.clear()


def run_for(bench: Bench, job_id: str, seconds: float) -> None:
    """A job that takes its time from placement to end."""
    bench.submit(make_job(job_id))
    bench.reserved(job_id=job_id)
    bench.prefilled(job_id=job_id, completion_tokens=1, prefill_seconds=0.5, ship_seconds=0.25, bytes_shipped=1000)
    bench.wait(seconds)
    bench.decoded(job_id=job_id, completion_tokens=2)
    bench.sent.clear()


@pytest.mark.parametrize(("field", "name"), [("predictor", "nope"), ("predictor", "oracle")])
def test_a_predictor_that_cannot_be_had_is_refused(field: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}='?{name}"):
        bench(**{field: name})


def test_a_file_that_nothing_is_learned_for_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"predictor_file='lengths\.npz': predictor none learns nothing"):
        build(SchedulerConfig, {"predictor": "none", "predictor_file": "lengths.npz"})


def test_the_file_is_written_when_there_is_news(tmp_path: Path) -> None:
    b = bench(predictor="percentile", predictor_file=str(tmp_path / "lengths.npz"))
    experience = b.core.experience
    assert [experience.save(), experience.save()] == [True, False]
    run(b, "j")
    assert not experience.save(), "it has ended, but is not learned from"
    experience.learn(1.0)
    assert [experience.save(), experience.save()] == [True, False]
    again = bench(predictor="percentile", predictor_file=str(tmp_path / "lengths.npz"))
    again.submit(make_job("after"))
    assert again.core.jobs["after"].forecast.tokens == (5.0,) * len(LEVELS)


def test_without_a_predictor_the_limit_is_believed() -> None:
    b = bench()
    b.submit(make_job(max_tokens=40))
    assert b.core.jobs["job-1"].forecast.tokens == (40.0,) * len(LEVELS)
    assert b.core.experience.learn(1.0) == 0


def test_jobs_are_forecast_when_queued_and_learned_from_when_ended_and_not_before() -> None:
    b = bench(predictor="percentile", policy="packhorse")
    for i in range(40):
        run(b, f"j{i}", output_tokens=5)
    b.submit(make_job("before"))
    assert b.core.jobs["before"].forecast.quantile(0.5) > 5
    assert b.core.experience.learn(10.0) == 40
    b.submit(make_job("after"))
    assert b.core.jobs["after"].forecast.quantile(0.5) == pytest.approx(5, abs=0.5)


def test_jobs_that_did_not_end_by_themselves_teach_nothing() -> None:
    b = bench(predictor="percentile")
    b.bring_to("decoding")
    b.core.shut_down(b.now)
    assert b.core.experience.learn(1.0) == 0


def test_the_predictors_levels_hold_ours() -> None:
    assert set(LEVELS) <= set(PREDICTED_LEVELS)
    lengths = tuple(float(10 * i) for i in range(1, len(PREDICTED_LEVELS) + 1))
    said = Prediction(lengths, 40.0, -4.0, "test")
    assert [said.quantile(level) for level in LEVELS] == [lengths[PREDICTED_LEVELS.index(level)] for level in LEVELS]


def test_reports_fit_the_costs_of_the_worker_and_the_link() -> None:
    b = bench()
    cost = b.core.experience.cost
    before = cost.worker("p1").prefill_seconds(10)
    for i in range(20):
        run(b, f"j{i}")
        load = WorkerLoad(step_seconds=0.2, step_context_tokens=100.0, step_jobs=2.0)
        b.hear(b"d1", Heartbeat(worker_id="d1", load=load))
    assert before < 0.1
    assert cost.worker("p1").prefill_seconds(10) == pytest.approx(0.5, rel=0.05)
    assert cost.worker("d1").step_seconds(100, 2) == pytest.approx(0.2, rel=0.05)
    assert cost.transfer_seconds("p1", "d1", 1000) == pytest.approx(0.25, rel=0.05)


def test_heartbeats_tell_progress() -> None:
    b = bench()
    b.bring_to("decoding")
    progress = b.core.jobs["job-1"].progress
    assert (progress.generated, progress.running) == (1, True)
    for told, known in ((7, 7), (5, 7), (10**9, 20)):
        b.hear(b"d1", Heartbeat(worker_id="d1", load=WorkerLoad(generated={"job-1": told, "unknown": 3})))
        assert progress.generated == known


def test_a_lost_workers_costs_are_forgotten() -> None:
    b = bench()
    run(b, "j")
    b.core.unreachable(b"p1", b.now)
    assert b.core.experience.cost.worker("p1").prefill.coefficients == DEFAULT_PRIOR.prefill


def test_a_prefill_that_ends_after_its_decode_worker_was_lost_keeps_nothing_of_that_link() -> None:
    b = bench()
    b.bring_to("prefilling")
    b.core.unreachable(b"d1", b.now)
    b.prefilled(completion_tokens=1, prefill_seconds=0.5, ship_seconds=0.25, bytes_shipped=1000)
    cost = b.core.experience.cost
    assert cost.worker("p1").prefill.num_samples == 1
    assert not any(cost._links.values())


def test_policies_know_the_typical_worker_and_the_largest_room() -> None:
    b = Bench(
        prefill_info("p1"), decode_info("d1"), decode_info("d2", capacity_pages=99, max_jobs=3), policy="packhorse"
    )
    assert b.core.policy.room == Room(99, 3)
    b.sent += b.core.unreachable(b"d2", b.now)
    assert b.core.policy.room == Room(20, 8)
    b.sent += b.core.unreachable(b"d1", b.now)
    assert b.core.policy.room == Room(20, 8), "as long as nothing else is known"
    b.register(decode_info("d1"))
    b.register(decode_info("d2", capacity_pages=99, max_jobs=3))
    cost, typical = b.core.experience.cost, TypicalCost()
    for worker_id, b_decode in (("d1", 1.0), ("d2", 3.0)):
        cost.worker(worker_id).decode.coefficients = (0.0, b_decode, 0.0)
    typical.refresh(cost, b.core.workers, 0.0)
    assert typical.step_seconds(1, 1) == 2.0
    cost.worker("d1").decode.coefficients = (0.0, 5.0, 0.0)
    typical.refresh(cost, b.core.workers, 1.0)
    assert typical.step_seconds(1, 1) == 2.0  # not yet
    typical.refresh(cost, b.core.workers, 9.0)
    assert typical.step_seconds(1, 1) == 4.0


def test_nothing_of_a_job_is_left_in_the_policy() -> None:
    b = bench(policy="packhorse", placement="predicted")
    run(b, "j")
    b.bring_to("prefilling", "k")
    b.core.shut_down(b.now)
    b.released("p1", "k")
    b.released("d1", "k")
    b.assert_idle()
    assert vars(b.core.policy)["_expected"] == {}


def test_predicted_against_actual_is_in_the_status() -> None:
    b = bench(predictor="percentile", placement="predicted")
    assert b.core.status(b.now).predictions["output_tokens"].count == 0
    for i in range(3):
        run_for(b, f"j{i}", seconds=2.0)
    told = b.core.status(b.now).predictions
    assert {kind: errors.total for kind, errors in told.items()} == {
        "output_tokens": 3,
        "prefill": 3,
        "decode": 0,
        "transfer": 3,
        "host": 0,
        "completion": 3,
    }
    assert (
        told["output_tokens"].bias > 0
    )  # nothing is learned between them: as long as the prior says, and they were short
    b.core.unreachable(b"p1", b.now)
    assert b.core.status(b.now).predictions["prefill"].total == 3  # also of workers that are gone


def test_what_never_ended_by_itself_is_no_wrong_prediction() -> None:
    b = bench(predictor="percentile", placement="predicted")
    b.bring_to("decoding")
    b.core.shut_down(b.now)
    assert all(errors.count == 0 for kind, errors in b.core.status(b.now).predictions.items() if kind != "prefill")


def test_the_status_has_the_longest_wait() -> None:
    b = Bench(prefill_info("p1", max_jobs=1), decode_info("d1"))
    for job_id in ("placed", "first", "second"):
        b.submit(make_job(job_id))
        b.wait(3)
    assert b.core.status(b.now).queue_seconds == 6.0


def test_policy_and_placement_hear_of_jobs_that_ended_by_themselves() -> None:
    b = bench(policy="packhorse", placement="predicted")
    before = [vars(b.core.policy)["recent"].forecast(1000), vars(b.core.placement)["_recent"].forecast(1000)]
    for i in range(REFRESH_EVERY):
        run(b, f"j{i}")
    after = [vars(b.core.policy)["recent"].forecast(1000), vars(b.core.placement)["_recent"].forecast(1000)]
    assert all(now.quantile(0.5) < then.quantile(0.5) for now, then in zip(after, before, strict=True))
