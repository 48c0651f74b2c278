"""Every transition of the state machine, and every word that does not fit its state."""

from __future__ import annotations

import pytest

from packhorse.errors import DeadlineError
from scheduler.jobs import CANCELLED, DONE, JobState, TrackedJob, failed, merge
from tests.scheduler.fakes import GATEWAY, LIMITS, make_job, tracked
from transport.messages import JobStats, Replay


def at(state: JobState) -> TrackedJob:
    """A job on p1 and d1 that reached `state` at time 0."""
    job = tracked()
    if state is not JobState.QUEUED:
        job.place("p1", "d1", 0)
    if state in (JobState.PREFILLING, JobState.DECODING, JobState.RELEASING):
        assert job.reserved("d1", 0)
    if state is JobState.DECODING:
        assert job.prefilled("p1", False, JobStats(), 0)
    if state is JobState.RELEASING:
        job.end(CANCELLED, 0)
    assert job.state is state
    return job


def test_the_whole_way() -> None:
    job = tracked(now=5)
    assert (job.state, job.deadline) == (JobState.QUEUED, 5 + LIMITS.queued)
    job.place("p1", "d1", 6)
    assert (job.state, job.deadline) == (JobState.RESERVING, 6 + LIMITS.reserving)
    assert job.holds == {"p1": False, "d1": True}
    assert job.reserved("d1", 7)
    assert (job.state, job.deadline) == (JobState.PREFILLING, 7 + LIMITS.prefilling)
    assert job.queue_seconds == 2
    assert job.prefilled("p1", False, JobStats(bytes_shipped=3), 8)
    assert (job.state, job.deadline) == (JobState.DECODING, 8 + LIMITS.decoding)
    assert job.decoded("d1", JobStats(completion_tokens=9))
    assert job.end(DONE, 9) == []
    assert job.state is JobState.ENDED
    stats = job.final_stats()
    assert (stats.bytes_shipped, stats.completion_tokens, stats.queue_seconds) == (3, 9, 2)
    assert (stats.prefill_worker, stats.decode_worker, stats.prompt_tokens) == ("p1", "d1", 10)


def impatient(seconds: float, **fields: int) -> TrackedJob:
    job = make_job(**fields).model_copy(update={"max_ttft_seconds": seconds})
    return TrackedJob(job, GATEWAY, 1, LIMITS, 5)


def test_a_request_may_give_up_before_the_queues_deadline() -> None:
    job = impatient(7)
    assert (job.deadline, job.overdue) == (12, "the job was still queued when its max_ttft_seconds=7 had passed")
    job.place("p1", "d1", 6)
    assert job.deadline == 12
    assert "still reserving at p1 and d1" in job.overdue
    assert job.reserved("d1", 7)
    assert job.deadline == 7 + LIMITS.prefilling, "token 1 may be out before this is known"
    assert "prefilling at p1 and d1 for more than 300 s" in job.overdue


def test_other_deadlines_may_come_before_a_requests_own() -> None:
    job = impatient(LIMITS.queued + 1)
    assert job.deadline == 5 + LIMITS.queued
    assert job.overdue == "the job was queued for more than 120 s"
    job.place("p1", "d1", 6)
    assert job.deadline == 6 + LIMITS.reserving


def test_a_job_whose_token_1_is_out_has_no_deadline_to_it() -> None:
    job = impatient(20)
    job.place("p1", "d1", 6)
    assert job.reserved("d1", 7)
    assert job.prefilled("p1", False, JobStats(), 8)
    assert job.requeued("d1", Replay(tokens=(1, 2), stats=JobStats()), 9)
    assert job.deadline == 8 + LIMITS.decoding
    job.place("p1", "d1", 30)
    assert job.deadline == 30 + LIMITS.reserving
    assert job.overdue.startswith("the job was reserving")


def test_a_dropped_job_has_the_time_for_decoding_in_every_state() -> None:
    job = at(JobState.DECODING)
    assert job.requeued("d1", Replay(tokens=(1, 2), stats=JobStats()), 9)
    last = LIMITS.decoding
    assert (job.deadline, job.overdue) == (
        last,
        "the job was decoding, and then preempted and queued, for more than 3600 s",
    )
    job.place("p1", "d1", last - 3)
    assert job.deadline == last
    assert job.reserved("d1", last - 2)
    assert job.deadline == last
    assert job.overdue == "the job was decoding, and then preempted and prefilling at p1 and d1, for more than 3600 s"
    assert job.prefilled("p1", False, JobStats(), last - 1)
    assert (job.deadline, job.overdue) == (last, "the job was decoding at d1 for more than 3600 s")
    job.end(CANCELLED, last - 1)
    assert job.deadline == last - 1 + LIMITS.releasing


def test_a_dropped_job_keeps_what_it_cost_and_nothing_of_where_it_was() -> None:
    job = at(JobState.DECODING)
    job.held_pages, job.paused, job.queue_seconds = 3, True, 2.0
    job.stats = JobStats(prefill_seconds=0.5, bytes_shipped=7)
    assert job.requeued("d1", Replay(tokens=(1, 2), stats=JobStats(preemptions=1)), 9)
    assert job.replay is not None
    assert (job.replay.stats.prefill_seconds, job.replay.stats.bytes_shipped, job.replay.stats.preemptions) == (
        0.5,
        7,
        1,
    )
    assert (job.held_pages, job.paused, job.holds) == (0, False, {})
    job.place("p1", "d1", 12)
    assert job.queue_seconds == 2.0 + 3


def test_one_token_needs_no_decode_worker() -> None:
    job = tracked(max_tokens=1)
    assert not job.needs_decode
    job.place("p1", "", 1)
    assert job.state is JobState.PREFILLING
    assert job.prefilled("p1", True, JobStats(), 2)
    assert job.end(DONE, 2) == []
    assert job.state is JobState.ENDED
    assert job.final_stats().decode_worker == ""


def test_token_1_ends_the_job_and_the_decode_side_is_released() -> None:
    job = at(JobState.PREFILLING)
    assert job.prefilled("p1", True, JobStats(), 1)
    assert job.end(DONE, 1) == ["d1"]
    assert (job.state, job.deadline) == (JobState.RELEASING, 1 + LIMITS.releasing)
    assert job.dropped("d1")
    assert job.state is JobState.ENDED
    assert job.final_stats().decode_worker == ""


def test_decoded_may_come_before_prefilled() -> None:
    job = at(JobState.PREFILLING)
    assert job.decoded("d1", JobStats(completion_tokens=4))
    assert job.end(DONE, 1) == ["p1"]
    assert job.state is JobState.RELEASING
    assert job.prefilled("p1", False, JobStats(bytes_shipped=7), 2)
    assert job.state is JobState.ENDED
    assert (job.final_stats().completion_tokens, job.final_stats().bytes_shipped) == (4, 7)


@pytest.mark.parametrize(
    ("state", "holders"),
    [
        (JobState.QUEUED, []),
        (JobState.RESERVING, ["d1"]),
        (JobState.PREFILLING, ["p1", "d1"]),
        (JobState.DECODING, ["d1"]),
        (JobState.RELEASING, []),
    ],
)
def test_ending_asks_those_who_know_of_the_job(state: JobState, holders: list[str]) -> None:
    job = at(state)
    assert sorted(job.end(failed(DeadlineError("late")), 1)) == sorted(holders)
    if state is not JobState.RELEASING:
        assert job.state is (JobState.RELEASING if holders else JobState.ENDED)
        assert job.outcome is not None
        assert job.outcome.label == "failed:deadline_exceeded"
    else:
        assert job.outcome is CANCELLED  # the first outcome stays


@pytest.mark.parametrize("state", [state for state in JobState if state is not JobState.ENDED])
@pytest.mark.parametrize("event", ["reserved", "prefilled", "decoded", "dropped"])
@pytest.mark.parametrize("worker_id", ["p1", "d1", "stranger"])
def test_word_that_does_not_fit_changes_nothing(state: JobState, event: str, worker_id: str) -> None:
    fitting = {
        "reserved": {(JobState.RESERVING, "d1")},
        "prefilled": {(JobState.PREFILLING, "p1"), (JobState.RELEASING, "p1")},
        "decoded": {(JobState.PREFILLING, "d1"), (JobState.DECODING, "d1"), (JobState.RELEASING, "d1")},
        "dropped": {
            (JobState.RESERVING, "p1"), (JobState.RESERVING, "d1"), (JobState.PREFILLING, "p1"), (JobState.PREFILLING, "d1"),
            (JobState.DECODING, "d1"), (JobState.RELEASING, "p1"), (JobState.RELEASING, "d1"),
        },
    }  # fmt: skip
    job = at(state)
    before = (job.state, job.deadline, dict(job.holds), job.outcome, job.stats)
    events = {
        "reserved": lambda: job.reserved(worker_id, 1),
        "prefilled": lambda: job.prefilled(worker_id, False, JobStats(bytes_shipped=1), 1),
        "decoded": lambda: job.decoded(worker_id, JobStats(bytes_shipped=1)),
        "dropped": lambda: job.dropped(worker_id),
    }
    assert events[event]() is ((state, worker_id) in fitting[event])
    if (state, worker_id) not in fitting[event]:
        assert (job.state, job.deadline, dict(job.holds), job.outcome, job.stats) == before
    else:
        assert events[event]() is False  # the same word again


def test_merged_stats_keep_what_either_side_knows() -> None:
    one = JobStats(prompt_tokens=5, bytes_shipped=10, prefill_worker="p1")
    two = JobStats(prompt_tokens=5, completion_tokens=3, decode_worker="d1")
    both = merge(one, two)
    assert both == merge(two, one)
    assert (both.prompt_tokens, both.completion_tokens, both.bytes_shipped) == (5, 3, 10)
    assert (both.prefill_worker, both.decode_worker) == ("p1", "d1")
