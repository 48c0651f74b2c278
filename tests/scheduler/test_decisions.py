"""How jobs are explained, from queue to end: what was predicted, chosen and why, and what became of them."""

from __future__ import annotations

from scheduler.decisions import Decisions
from scheduler.forecast import Forecast
from tests.scheduler.fakes import GATEWAY, Bench, decode_info, make_job, prefill_info, tracked
from transport.messages import Explain, Explanation, Explanations, Heartbeat, LengthScore, WorkerLoad


def bench() -> Bench:
    return Bench(prefill_info(), decode_info(), policy="ssjf", placement="predicted", predictor="percentile")


def ask(b: Bench, job_id: str = "", newest: int = 0) -> tuple[Explanation, ...]:
    b.hear(GATEWAY, Explain(job_id=job_id, newest=newest))
    (said,) = b.take(Explanations, GATEWAY)
    assert (said.job_id, said.newest) == (job_id, newest)
    return said.jobs


def test_a_decision_is_explained_from_queue_to_end() -> None:
    b = bench()
    assert ask(b, "job-1") == ()
    b.submit()
    (said,) = ask(b, "job-1")
    assert (said.policy, said.placement, said.prefill_worker, said.decode_worker) == ("ssjf", "predicted", "p1", "d1")
    assert (said.prompt_tokens, said.max_tokens, said.pages) == (10, 20, b.core.jobs["job-1"].pages)
    assert said.predicted_tokens == b.core.jobs["job-1"].forecast.tokens
    assert said.expected_seconds > 0
    assert "transfer" in said.why
    assert (said.stage, said.outcome, said.output_tokens, said.took_seconds) == ("reserving", "", None, None)
    b.wait(2)
    b.reserved()
    b.prefilled()
    (said,) = ask(b, "job-1")
    assert (said.stage, said.generated_tokens) == ("decoding", 1)
    b.wait(3)
    b.decoded(completion_tokens=9)
    (said,) = ask(b, "job-1")
    assert (said.stage, said.outcome, said.output_tokens) == ("", "done", 9)
    assert (said.queue_seconds, said.took_seconds) == (2.0, 5.0)


def test_the_newest_forecast_stands_beside_the_first() -> None:
    b = bench()
    b.submit(make_job(max_tokens=200))
    (queued,) = ask(b, "job-1")
    assert (queued.current_tokens, queued.refined) == ((), False), "nothing is known beyond the first"
    b.reserved()
    b.prefilled()
    b.core.jobs["job-1"].forecast = first = Forecast.made([20, 40, 80, 120, 160], 200)
    b.hear(b"d1", Heartbeat(worker_id="d1", load=WorkerLoad(generated={"job-1": 100})))
    (said,) = ask(b, "job-1")
    assert said.predicted_tokens == queued.predicted_tokens
    assert said.current_tokens == tuple(100 + first.remaining(level, 100) for level in said.levels)
    assert min(said.current_tokens) > 100
    score = LengthScore(generated=120, span_tokens=200, probabilities=(0.9, *(0.1 / 9,) * 9))
    b.hear(b"d1", Heartbeat(worker_id="d1", load=WorkerLoad(generated={"job-1": 120}, scores={"job-1": score})))
    (refined,) = ask(b, "job-1")
    assert refined.refined
    assert refined.current_tokens[2] < said.current_tokens[2], "the score says that it ends soon"
    b.decoded(completion_tokens=130)
    (done,) = ask(b, "job-1")
    assert (done.current_tokens, done.refined) == ((), False)


def test_a_completion_stands_for_its_jobs_in_their_order() -> None:
    b = bench()
    for job_id in ("cmpl-1-0", "cmpl-1-1", "cmpl-11-0", "cmpl-1-2"):
        b.submit(make_job(job_id))
    assert [job.job_id for job in ask(b, "cmpl-1")] == ["cmpl-1-0", "cmpl-1-1", "cmpl-1-2"]
    assert [job.job_id for job in ask(b, "cmpl-1-1")] == ["cmpl-1-1"]
    assert ask(b, "cmpl-2") == ask(b, "cmpl") == ()


def test_the_newest_come_first() -> None:
    b = bench()
    for i in range(5):
        b.submit(make_job(f"j{i}"))
    assert [job.job_id for job in ask(b, newest=3)] == ["j4", "j3", "j2"]
    assert len(ask(b, newest=100)) == 5
    assert ask(b) == ()


def test_what_went_wrong_is_told() -> None:
    b = bench()
    b.submit(make_job("lost"))
    b.core.unreachable(b"d1", b.now)
    b.submit(make_job("refused"))
    lost, refused = ask(b, "lost")[0], ask(b, "refused")[0]
    assert (lost.outcome, lost.stage, lost.output_tokens) == ("failed:worker_lost", "", None)
    assert "decode worker d1" in lost.error
    assert (refused.outcome, refused.queue_seconds, refused.policy) == ("failed:unavailable", None, "")
    assert refused.error == "no decode worker is registered"


def test_a_deadline_of_its_own_is_told_of_a_refused_job_too() -> None:
    b = bench()
    b.core.unreachable(b"d1", b.now)
    b.submit(make_job("refused").model_copy(update={"max_ttft_seconds": 2.0}))
    assert ask(b, "refused")[0].max_ttft_seconds == 2.0


def test_only_the_newest_decisions_are_kept() -> None:
    decisions = Decisions(most=3)
    for i in range(10):
        decisions.queued(tracked(f"j{i}"), "max_tokens", "fcfs", "least-loaded")
    assert len(decisions) == 3
    assert decisions.named("j6") == []
    assert decisions.named("j7")[0].queue_seconds is None


def test_jobs_that_are_forgotten_end_all_the_same() -> None:
    b = bench()
    vars(b.core.decisions)["_most"] = 1
    b.submit(make_job("old"))
    b.submit(make_job("new"))
    for job_id in ("old", "new"):
        b.reserved(job_id=job_id)
        b.prefilled(job_id=job_id, finish="stop", completion_tokens=1)
    b.release_all()
    b.assert_idle()
    assert [job.job_id for job in ask(b, newest=9)] == ["new"]
    assert vars(b.core.decisions)["_placed_at"] == {}
