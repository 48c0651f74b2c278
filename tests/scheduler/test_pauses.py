"""Declared tool pauses: a job goes on when its pause is over, and what its memory does meanwhile is the policy's."""

from __future__ import annotations

import pytest

from scheduler.jobs import ToolPause as Declared
from tests.scheduler.fakes import Bench, decode_info, make_job, prefill_info
from transport.messages import (
    Cancel,
    Explain,
    Explanations,
    JobFailed,
    JobStats,
    Paused,
    Preempt,
    Preempted,
    Release,
    Replay,
    Resume,
    Resumed,
    ToolPause,
)


def bench(policy: str = "fcfs", *, host_pages: int = 20, **config: object) -> Bench:
    return Bench(
        prefill_info("p1"), decode_info("d1", capacity_pages=6, host_pages=host_pages), policy=policy, **config
    )


def decoding(b: Bench, job_id: str = "job-1", *, seconds: float = 5.0, tokens: int = 200) -> None:
    """A job of three pages that declares a pause after 10 tokens of output."""
    job = make_job(job_id, max_tokens=tokens)
    b.submit(job.model_copy(update={"tool_pause": ToolPause(after_tokens=10, seconds=seconds)}))
    b.reserved(job_id=job_id)
    b.prefilled(job_id=job_id)
    assert b.state(job_id) == "decoding"
    b.sent.clear()


def pauses(b: Bench, job_id: str = "job-1") -> None:
    b.hear(b"d1", Paused(job_id=job_id, worker_id="d1"))


def is_out(b: Bench, job_id: str = "job-1", number: int = 1) -> None:
    b.hear(b"d1", Preempted(job_id=job_id, worker_id="d1", number=number))


def test_a_job_goes_on_when_its_pause_is_over() -> None:
    b = bench()
    decoding(b, seconds=5.0)
    assert b.core.jobs["job-1"].pause == Declared(10, 5.0)
    pauses(b)
    b.hear(b"gateway-1", Explain(job_id="job-1"))
    assert b.take(Explanations)[0].jobs[0].stage == "paused"
    assert b.core.next_pause_end() == b.now + 5.0
    b.wait(4.5)
    assert b.take(Resume) == []
    b.wait(0.5)
    assert b.take(Resume, "d1") == [Resume(job_id="job-1")]
    assert b.core.next_pause_end() is None
    assert b.core.jobs["job-1"].progress.running
    b.wait(10)
    assert b.take(Resume) == []
    b.decoded()
    b.assert_idle()


def test_time_in_the_pause_is_no_service() -> None:
    b = bench()
    decoding(b, seconds=5.0)
    b.wait(2)
    pauses(b)
    b.wait(5)
    b.wait(3)
    assert b.core.jobs["job-1"].progress.service_seconds(b.now) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("policy", "seconds", "moves"), [("fcfs", 60.0, False), ("lamps", 1e-5, False), ("lamps", 60.0, True)]
)
def test_memory_is_given_back_where_the_policy_says_so(policy: str, seconds: float, moves: bool) -> None:
    b = bench(policy)
    decoding(b, seconds=seconds)
    pauses(b)
    assert b.take(Preempt) == ([Preempt(job_id="job-1", number=1)] if moves else [])


def test_word_of_the_pause_may_come_before_word_of_the_prefill() -> None:
    b = bench("lamps")
    b.submit(make_job(max_tokens=200).model_copy(update={"tool_pause": ToolPause(after_tokens=1, seconds=60.0)}))
    b.reserved()
    pauses(b)
    assert b.take(Preempt) == []
    b.prefilled()
    assert b.take(Preempt) == [Preempt(job_id="job-1", number=1)]


def test_a_job_in_host_memory_gives_room_and_comes_back_after_its_pause_and_not_before() -> None:
    b = bench("lamps")
    decoding(b, seconds=5.0, tokens=380)  # the whole pool
    pauses(b)
    assert b.take(Preempt) == [Preempt(job_id="job-1", number=1)]
    b.submit(make_job("other", max_tokens=380))
    assert b.state("other") == "queued"
    is_out(b)
    assert b.state("other") == "reserving"
    b.reserved(job_id="other")
    b.prefilled(job_id="other")
    b.decoded(job_id="other")  # all pages are free, and it stays away
    b.wait(4)
    assert b.take(Resume) == []
    b.wait(1.5)
    assert b.take(Resume, "d1") == [Resume(job_id="job-1")]
    b.hear(b"d1", Resumed(job_id="job-1", worker_id="d1"))
    assert b.core.jobs["job-1"].progress.running
    b.decoded()
    b.assert_idle()


def test_a_pause_that_is_over_before_the_pages_are_out() -> None:
    b = bench("lamps")
    decoding(b, seconds=2.0)
    pauses(b)
    b.take(Preempt)
    b.wait(3)
    assert b.take(Resume) == []
    is_out(b)
    assert b.take(Resume, "d1") == [Resume(job_id="job-1")]


def test_without_room_in_host_memory_pages_stay() -> None:
    b = bench("lamps", host_pages=2)
    decoding(b, seconds=60.0)
    pauses(b)
    assert b.take(Preempt) == []
    b.wait(60)
    assert b.take(Resume, "d1") == [Resume(job_id="job-1")]


def test_a_job_that_pauses_is_not_stopped_for_others() -> None:
    b = bench("srpt-oracle")
    decoding(b, seconds=60.0, tokens=380)
    pauses(b)
    b.submit(make_job("short", max_tokens=70))
    assert b.take(Preempt) == []
    assert b.state("short") == "queued"


def test_a_job_that_comes_to_its_pause_again_goes_on_at_once() -> None:
    b = bench()
    decoding(b, seconds=1.0)
    pauses(b)
    b.wait(1)
    assert len(b.take(Resume)) == 1
    pauses(b)
    assert b.take(Resume) == [Resume(job_id="job-1")]


@pytest.mark.parametrize(("back_after", "left"), [(3.0, 2.0), (8.0, 0.0)])
def test_a_job_that_is_dropped_as_its_pause_begins_waits_for_what_is_left_of_it(back_after: float, left: float) -> None:
    """The scheduler asks for it just before it hears that the job has come to its pause."""
    b = bench("srpt-oracle", host_pages=0)
    decoding(b, seconds=5.0, tokens=380)  # the whole pool
    b.submit(make_job("short", max_tokens=70))
    assert b.take(Preempt) == [Preempt(job_id="job-1", number=1, drop=True)]
    pauses(b)
    replay = Replay(tokens=tuple(range(10)), stats=JobStats(preemptions=1))
    b.hear(b"d1", Preempted(job_id="job-1", worker_id="d1", number=1, replay=replay))
    assert (b.state("job-1"), b.core.next_pause_end()) == ("queued", None)
    b.reserved(job_id="short")
    b.prefilled(job_id="short")
    b.decoded(job_id="short")
    b.reserved(job_id="job-1")
    b.prefilled(job_id="job-1")
    b.wait(back_after)
    b.sent.clear()
    pauses(b)
    if left:
        assert b.take(Resume) == []
        assert b.core.next_pause_end() == pytest.approx(b.now + left)
        b.wait(left)
    assert b.take(Resume, "d1") == [Resume(job_id="job-1")]
    assert b.core.next_pause_end() is None
    b.decoded()
    b.assert_idle()


@pytest.mark.parametrize("policy", ["fcfs", "lamps"])
def test_a_job_may_be_cancelled_or_lost_in_its_pause(policy: str) -> None:
    b = bench(policy, worker_timeout_seconds=1000)
    for end in ("cancel", "lost"):
        decoding(b, end, seconds=5.0)
        pauses(b, end)
        if policy == "lamps":
            is_out(b, end)
        if end == "cancel":
            b.hear(b"gateway-1", Cancel(job_id=end, reason="left"))
            assert [message.job_id for message in b.take(Release, "d1")] == [end]
            b.released("d1", end)
        else:
            b.sent += b.core.unreachable(b"d1", b.now)
            assert [message.job_id for message in b.take(JobFailed)] == [end]
        b.wait(6)
        assert b.take(Resume) == []
        assert b.core.next_pause_end() is None
    b.assert_idle()


def test_word_of_a_job_that_is_not_there_changes_nothing() -> None:
    b = bench()
    pauses(b, "nobody")
    decoding(b)
    b.hear(b"d2", Paused(job_id="job-1", worker_id="d2"))
    assert b.core.next_pause_end() is None


def test_a_pause_that_is_over_at_once_does_not_call_back_a_job_that_is_leaving() -> None:
    """Its worker is moving the pages out by then: it would move them back where the scheduler counts them as gone."""
    b = bench("srpt-oracle")
    decoding(b, tokens=380)  # the whole pool
    b.core.jobs["job-1"].pause_until = b.now  # as of one that was dropped in its pause, and comes to it anew
    b.submit(make_job("short", max_tokens=70))
    assert b.take(Preempt) == [Preempt(job_id="job-1", number=1)]
    pauses(b)
    assert b.take(Resume) == []
    is_out(b)
    b.reserved(job_id="short")
    b.prefilled(job_id="short")
    b.decoded(job_id="short")
    assert b.take(Resume, "d1") == [Resume(job_id="job-1")]
    b.hear(b"d1", Resumed(job_id="job-1", worker_id="d1"))
    b.decoded()
    b.assert_idle()
