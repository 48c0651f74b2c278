"""Which jobs give way on a decode worker, and when they come back."""

from __future__ import annotations

import pytest

from tests.scheduler.fakes import Bench, decode_info, make_job, prefill_info
from transport.messages import (
    Cancel,
    JobEnded,
    JobFailed,
    JobStats,
    Preempt,
    Preempted,
    Release,
    Replay,
    Reserve,
    Resume,
    Resumed,
    StartPrefill,
)


def bench(policy: str = "srpt-oracle", *, host_pages: int = 20, prefill_jobs: int = 4, **config: object) -> Bench:
    infos = prefill_info("p1", max_jobs=prefill_jobs), decode_info("d1", capacity_pages=6, host_pages=host_pages)
    return Bench(*infos, policy=policy, **config)


def decoding(b: Bench, job_id: str, tokens: int) -> None:
    """A job of `tokens` (its max_tokens, which is what is believed without a predictor), and so many pages as 64 go into it."""
    b.submit(make_job(job_id, max_tokens=tokens))
    b.reserved(job_id=job_id)
    b.prefilled(job_id=job_id)
    assert b.state(job_id) == "decoding"
    b.sent.clear()


def is_out(b: Bench, job_id: str, number: int = 1) -> None:
    b.hear(b"d1", Preempted(job_id=job_id, worker_id="d1", number=number))


def test_the_longest_gives_way_and_comes_back_when_there_is_room() -> None:
    b = bench()
    decoding(b, "long", 200)  # 3 pages
    decoding(b, "middle", 130)  # 2
    b.submit(make_job("short", max_tokens=80))  # 1: fits
    assert b.take(Preempt) == []
    b.submit(make_job("late", max_tokens=70))
    assert b.take(Preempt, "d1") == [Preempt(job_id="long", number=1)]
    assert [message.job.job_id for message in b.take(Reserve)] == ["short"]
    is_out(b, "long")
    assert [message.job.job_id for message in b.take(Reserve)] == ["late"]
    for job_id in ("short", "late"):
        b.reserved(job_id=job_id)
        b.prefilled(job_id=job_id)
    assert b.take(Resume) == []  # 2 of 3 pages free
    b.decoded(job_id="short")
    assert b.take(Resume, "d1") == [Resume(job_id="long")]
    for job_id in ("long", "late", "middle"):
        b.decoded(job_id=job_id)
    assert len(b.take(JobEnded)) == 4
    b.assert_idle()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"policy": "ssjf"}, "the policy does not preempt"),
        ({"prefill_jobs": 1}, "no prefill worker could start the job"),
    ],
)
def test_nobody_is_stopped_in_vain(changes: dict[str, object], why: str) -> None:
    b = bench(**changes)  # type: ignore[arg-type]
    decoding(b, "long", 380)
    if "prefill_jobs" in changes:
        b.submit(make_job("first", max_tokens=1))
    b.submit(make_job("short", max_tokens=70))
    assert b.take(Preempt) == [], why
    assert b.state("short") == "queued"


def test_a_longer_job_waits_its_turn() -> None:
    b = bench()
    decoding(b, "short", 340)
    b.submit(make_job("long", max_tokens=380))
    assert b.take(Preempt) == []


def test_old_word_of_a_preemption_is_not_believed() -> None:
    b = bench()
    decoding(b, "long", 380)
    b.submit(make_job("one", max_tokens=70))
    is_out(b, "long")
    b.reserved(job_id="one")
    b.prefilled(job_id="one")
    b.decoded(job_id="one")
    assert b.take(Resume) == [Resume(job_id="long")]
    b.now += 1
    b.submit(make_job("two", max_tokens=70))
    assert [message.number for message in b.take(Preempt)] == [1], "a job that is returning is not stopped"
    b.hear(b"d1", Resumed(job_id="long", worker_id="d1"))
    b.now += 1
    b.sent += b.core.tick(b.now)
    assert [message.number for message in b.take(Preempt)] == [2]
    b.sent.clear()
    is_out(b, "long", number=1)
    assert b.take(Reserve) == []
    is_out(b, "long", number=2)
    assert len(b.take(Reserve)) == 1


def test_every_worker_has_its_own_round_and_every_job_one() -> None:
    b = bench()
    decoding(b, "long", 380)
    b.register(decode_info("d2", capacity_pages=6, host_pages=20))
    b.submit(make_job("longer", max_tokens=384))
    b.reserved("d2", job_id="longer")
    b.prefilled(job_id="longer")
    b.sent.clear()
    b.submit(make_job("short", max_tokens=80))
    (first,) = [peer for peer, message in b.sent if isinstance(message, Preempt)]
    b.now += 1
    b.sent += b.core.tick(b.now)
    assert len(b.take(Preempt)) == 1, "one worker makes room for the job, not two"
    b.submit(make_job("shorter", max_tokens=70))
    (second,) = [peer for peer, message in b.sent if isinstance(message, Preempt)]
    assert {first, second} == {b"d1", b"d2"}
    is_out(b, "long")
    b.hear(b"d2", Preempted(job_id="longer", worker_id="d2", number=1))
    assert sorted(message.job.job_id for message in b.take(Reserve)) == ["short", "shorter"]


def busy_workers(count: int, prefill_jobs: int = 4) -> Bench:
    """d1, d2, ... of one place each, which a long job has."""
    b = Bench(prefill_info("p1", max_jobs=prefill_jobs), policy="srpt-oracle")
    for i in range(count):
        name = f"d{i + 1}"
        b.register(decode_info(name, capacity_pages=6, max_jobs=1, host_pages=20))
        b.submit(make_job(f"long-{i}", max_tokens=380 + i))
        b.reserved(name, job_id=f"long-{i}")
        b.prefilled(job_id=f"long-{i}")
    assert sorted(b.core.jobs[job_id].decode_worker for job_id in b.core.jobs) == [f"d{i + 1}" for i in range(count)]
    b.sent.clear()
    return b


def look_again(b: Bench) -> None:
    b.now += 1
    b.sent += b.core.tick(b.now)


def test_room_is_made_for_those_behind_the_head_too() -> None:
    b = busy_workers(3)
    for job_id, tokens in (("first", 70), ("second", 80)):
        b.submit(make_job(job_id, max_tokens=tokens))
    look_again(b)
    asked = [peer for peer, message in b.sent if isinstance(message, Preempt)]
    assert len(asked) == len(set(asked)) == 2, "two jobs, two workers of three"
    look_again(b)
    assert len(b.take(Preempt)) == 2
    for peer in asked:
        (running,) = b.core.workers.get(peer.decode()).jobs  # type: ignore[union-attr]
        b.hear(peer, Preempted(job_id=running, worker_id=peer.decode(), number=1))
        b.now += 0.01
    assert [message.job.job_id for message in b.take(Reserve)] == ["first", "second"]


def test_the_first_room_is_the_heads_whomever_it_was_made_for() -> None:
    """The newcomer goes before the job that room is being made for, which gets the next room: two in all."""
    b = busy_workers(3)
    b.submit(make_job("waits", max_tokens=80))
    b.submit(make_job("newcomer", max_tokens=70))
    look_again(b)
    assert len(b.take(Preempt)) == 2
    is_out(b, "long-0")
    assert [message.job.job_id for message in b.take(Reserve)] == ["newcomer"]
    look_again(b)
    assert b.take(Preempt) == [], "the other round is for the job that waits"


def test_no_room_is_made_for_whom_no_prefill_worker_could_start() -> None:
    b = busy_workers(3, prefill_jobs=1)
    for job_id, tokens in (("first", 70), ("second", 80)):
        b.submit(make_job(job_id, max_tokens=tokens))
        look_again(b)
    assert len(b.take(Preempt)) == 1


def test_pages_count_on_both_sides_while_they_move() -> None:
    b = bench()
    decoding(b, "long", 380)
    worker = next(worker for worker in b.core.workers if worker.worker_id == "d1")
    seen = [(worker.reserved_pages, worker.host_pages_used)]
    b.submit(make_job("short", max_tokens=70))
    seen.append((worker.reserved_pages, worker.host_pages_used))
    is_out(b, "long")
    b.hear(b"gateway-1", Cancel(job_id="short", reason="left"))
    b.release_all()
    assert b.take(Resume) == [Resume(job_id="long")]
    seen.append((worker.reserved_pages, worker.host_pages_used))
    b.hear(b"d1", Resumed(job_id="long", worker_id="d1"))
    seen.append((worker.reserved_pages, worker.host_pages_used))
    assert seen == [(6, 0), (6, 6), (6, 6), (6, 0)]


def test_a_job_that_ends_before_it_is_stopped_makes_room_too() -> None:
    b = bench()
    decoding(b, "long", 380)
    b.submit(make_job("short", max_tokens=70))
    assert len(b.take(Preempt)) == 1
    b.decoded(job_id="long")
    assert [message.job.job_id for message in b.take(Reserve)] == ["short"]


@pytest.mark.parametrize("end", ["cancel", "lost"])
def test_a_job_that_is_out_may_end_there(end: str) -> None:
    b = bench()
    decoding(b, "long", 380)
    b.submit(make_job("short", max_tokens=70))
    is_out(b, "long")
    if end == "cancel":
        b.hear(b"gateway-1", Cancel(job_id="long", reason="left"))
        assert "long" in [message.job_id for message in b.take(Release, "d1")]
        b.released("d1", "long")
    else:
        b.sent += b.core.unreachable(b"d1", b.now)
        assert {message.job_id for message in b.take(JobFailed)} == {"long", "short"}
        b.release_all()
    assert "long" not in b.core.jobs
    if end == "cancel":
        b.reserved(job_id="short")
        b.prefilled(job_id="short")
        b.decoded(job_id="short")
    b.assert_idle()


def test_a_job_that_has_been_out_for_long_stops_others_in_turn() -> None:
    b = bench("packhorse", worker_timeout_seconds=1000)
    decoding(b, "long", 380)
    b.submit(make_job("short", max_tokens=70))
    is_out(b, "long")
    b.reserved(job_id="short")
    b.prefilled(job_id="short")
    b.sent.clear()
    b.now += 59
    b.sent += b.core.tick(b.now)
    assert b.take(Preempt) == []
    b.now += 2
    b.sent += b.core.tick(b.now)
    assert b.take(Preempt) == [Preempt(job_id="short", number=1)]
    is_out(b, "short")
    assert b.take(Resume) == [Resume(job_id="long")]


def test_room_that_was_made_is_not_taken_back_by_the_one_that_made_it() -> None:
    b = bench()
    decoding(b, "long", 380)
    b.submit(make_job("short", max_tokens=70))
    is_out(b, "long")
    assert b.take(Resume) == []
    assert len(b.take(Reserve)) == 1


def test_a_job_that_is_out_comes_before_a_longer_one_in_the_queue() -> None:
    b = bench()
    decoding(b, "middle", 380)
    b.submit(make_job("short", max_tokens=70))
    is_out(b, "middle")
    b.reserved(job_id="short")
    b.prefilled(job_id="short")
    b.submit(make_job("long", max_tokens=390))
    b.sent.clear()
    b.decoded(job_id="short")
    assert b.take(Resume) == [Resume(job_id="middle")]
    assert b.take(Reserve) == []


# ---- dropping


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
