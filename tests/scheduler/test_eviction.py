"""Jobs that give way by being dropped: when that is, and what becomes of them in the queue."""

from __future__ import annotations

import pytest

from tests.scheduler.fakes import Bench, decode_info, make_job
from tests.scheduler.preemption_bench import bench, decoding
from transport.messages import (
    Cancel,
    JobEnded,
    JobFailed,
    JobStats,
    Preempt,
    Preempted,
    Replay,
    Reserve,
    StartPrefill,
)


def dropped(b: Bench, job_id: str, tokens: tuple[int, ...] = (5, 6, 7), number: int = 1, **stats: object) -> None:
    replay = Replay(tokens=tokens, stats=JobStats(preemptions=number, **stats))  # type: ignore[arg-type]
    b.hear(b"d1", Preempted(job_id=job_id, worker_id="d1", number=number, replay=replay))


def dropping(b: Bench) -> None:
    """`long` is asked to give way to `short`, by dropping."""
    decoding(b, "long", 380)
    b.submit(make_job("short", max_tokens=70))
    assert b.take(Preempt) == [Preempt(job_id="long", number=1, drop=True)]


@pytest.mark.parametrize("host_pages", [0, 5])
def test_where_host_memory_has_no_room_the_job_is_dropped_and_queued_again(host_pages: int) -> None:
    b = bench(host_pages=host_pages)
    dropping(b)
    worker = next(worker for worker in b.core.workers if worker.worker_id == "d1")
    assert (worker.reserved_pages, worker.host_pages_used) == (6, 0)
    dropped(b, "long", bytes_shipped=100)
    assert b.state("long") == "queued"
    assert [message.job.job_id for message in b.take(Reserve)] == ["short"]
    b.reserved(job_id="short")
    b.prefilled(job_id="short")
    b.sent.clear()
    b.decoded(job_id="short")
    (reserve,) = b.take(Reserve)
    assert reserve.replay == Replay(tokens=(5, 6, 7), stats=JobStats(preemptions=1, bytes_shipped=100))
    b.reserved(job_id="long")
    (start,) = b.take(StartPrefill)
    assert start.first_token == 5
    b.prefilled(job_id="long", bytes_shipped=40, prefill_seconds=0.5)
    assert b.state("long") == "decoding"
    b.decoded(job_id="long", bytes_shipped=140, completion_tokens=380, preemptions=1)
    stats = {message.stats.prompt_tokens: message.stats for message in b.take(JobEnded)}[10]
    assert (stats.bytes_shipped, stats.completion_tokens, stats.preemptions) == (140, 380, 1)
    assert stats.prefill_seconds == 0.5
    b.assert_idle()


def test_the_cheaper_way_is_taken_and_both_estimates_are_told() -> None:
    """Copies at 1 kB/s and 100 s/kB: a job that has just begun is sooner computed again."""
    b = bench()
    b.core.experience.cost.worker("d1").host.coefficients = (0.0, 1e-3)
    dropping(b)
    (told,) = b.core.decisions.named("long")
    (eviction,) = told.evictions
    assert (eviction.way, eviction.worker_id, eviction.generated_tokens) == ("drop", "d1", 1)
    assert eviction.swap_seconds is not None
    assert eviction.swap_seconds > eviction.drop_seconds > 0
    other = bench()
    decoding(other, "long", 380)
    other.submit(make_job("short", max_tokens=70))
    (told,) = other.core.decisions.named("long")
    assert told.evictions[0].way == "swap"
    assert told.evictions[0].swap_seconds is not None
    assert told.evictions[0].swap_seconds < told.evictions[0].drop_seconds


@pytest.mark.parametrize(("generated", "ways"), [(300, []), (20, ["drop"])])
def test_nobody_is_dropped_who_is_sooner_done(generated: int, ways: list[str]) -> None:
    """Of 380 tokens: 300 would take longer than the 80 that are left."""
    b = bench(host_pages=0, policy="fastserve")
    decoding(b, "long", 380)
    b.core.jobs["long"].progress.generated = generated
    b.wait(1.0)
    b.submit(make_job("short", max_tokens=70))
    b.wait(5.0)
    (told,) = b.core.decisions.named("long")
    assert [eviction.way for eviction in told.evictions] == ways


def test_a_job_is_dropped_again_only_once_it_has_gone_beyond_what_it_had() -> None:
    b = bench(host_pages=0)
    dropping(b)
    dropped(b, "long")
    b.hear(b"gateway-1", Cancel(job_id="short", reason="left"))
    b.release_all()
    b.reserved(job_id="long")
    b.prefilled(job_id="long")
    b.submit(make_job("other", max_tokens=70))
    assert b.take(Preempt) == []
    b.core.jobs["long"].progress.generated = 4
    b.now += 1
    b.sent += b.core.tick(b.now)
    assert b.take(Preempt) == [Preempt(job_id="long", number=2, drop=True)]


def test_a_job_that_ends_before_it_is_dropped_has_ended() -> None:
    b = bench(host_pages=0)
    dropping(b)
    b.decoded(job_id="long")
    dropped(b, "long")  # cannot be; and changes nothing
    assert b.state("long") is None
    assert [message.job.job_id for message in b.take(Reserve)] == ["short"]


def test_a_job_that_is_cancelled_while_it_is_dropped_is_gone() -> None:
    b = bench(host_pages=0)
    dropping(b)
    b.hear(b"gateway-1", Cancel(job_id="long", reason="left"))
    dropped(b, "long")
    assert b.state("long") == "releasing"
    b.release_all()
    assert b.state("long") is None
    b.hear(b"gateway-1", Cancel(job_id="short", reason="left"))
    b.release_all()
    b.assert_idle()


@pytest.mark.parametrize("end", ["cancel", "deadline", "its worker is lost", "all workers are lost"])
def test_a_dropped_job_in_the_queue(end: str) -> None:
    b = bench(host_pages=0, policy="srpt-oracle", queue_seconds=30, decode_seconds=100)
    dropping(b)
    dropped(b, "long")
    b.reserved(job_id="short")
    b.prefilled(job_id="short")
    b.sent.clear()
    if end == "cancel":
        b.hear(b"gateway-1", Cancel(job_id="long", reason="left"))
    elif end == "deadline":
        b.core.jobs["short"].deadline = b.now + 1000
        b.wait(60)
        assert b.state("long") == "queued", "the deadline is that of decoding"
        b.wait(50)
        failures = {message.job_id: message.error.message for message in b.take(JobFailed)}
        assert "decoding, and then preempted and queued, for more than 100 s" in failures["long"]
    else:
        b.sent += b.core.unreachable(b"d1", b.now)
        assert b.state("long") == "queued", "nothing of it was there"
        if end == "all workers are lost":
            b.sent += b.core.unreachable(b"p1", b.now)
            b.register(decode_info("d2", capacity_pages=6))
            failures = {message.job_id: message.error.message for message in b.take(JobFailed)}
            assert "some of its tokens generated" in failures["long"]
        else:
            b.register(decode_info("d2", capacity_pages=6))
            (reserve,) = b.take(Reserve, "d2")
            assert reserve.replay is not None
            b.hear(b"gateway-1", Cancel(job_id="long", reason="left"))
    b.release_all()
    assert b.state("long") is None
    assert len(b.core.policy) == 0


def test_the_time_for_decoding_does_not_start_anew() -> None:
    b = bench(host_pages=0, decode_seconds=100)
    dropping(b)
    by = b.core.jobs["long"].deadline
    dropped(b, "long")
    b.hear(b"gateway-1", Cancel(job_id="short", reason="left"))
    b.release_all()
    b.now += 50
    b.reserved(job_id="long")
    b.prefilled(job_id="long")
    assert b.core.jobs["long"].deadline == by
    assert b.core.jobs["long"].queue_seconds == pytest.approx(50)


def test_a_dropped_job_is_not_shed_for_one_of_a_higher_class() -> None:
    b = bench(host_pages=0, max_queue=1)
    dropping(b)
    dropped(b, "long")
    b.submit(make_job("higher", max_tokens=390).model_copy(update={"priority": 1}))
    failures = [message.job_id for message in b.take(JobFailed)]
    assert failures == ["higher"]
    assert b.state("long") == "queued"


@pytest.mark.parametrize("policy", ["packhorse", "fastserve"])
def test_a_job_that_was_long_in_service_does_not_take_its_place_back_at_once(policy: str) -> None:
    """It has not waited yet, however long ago it came."""
    b = bench(policy, host_pages=0, worker_timeout_seconds=1000)
    decoding(b, "long", 380)
    b.now += 100
    b.submit(make_job("short", max_tokens=70))
    while not b.take(Preempt):
        b.now += 0.1
        b.sent += b.core.tick(b.now)
    dropped(b, "long")
    b.reserved(job_id="short")
    b.prefilled(job_id="short")
    b.now += 0.1
    b.sent += b.core.tick(b.now)
    assert (b.state("short"), b.state("long")) == ("decoding", "queued")
    assert b.take(Preempt) == []


def test_old_word_of_a_drop_is_not_believed() -> None:
    b = bench(host_pages=0)
    dropping(b)
    dropped(b, "long", number=0)
    assert b.state("long") == "decoding"
    assert b.take(Reserve) == []
    dropped(b, "long", number=1)
    assert b.state("long") == "queued"
