"""Which jobs give way on a decode worker, and when they come back."""

from __future__ import annotations

import pytest

from scheduler.jobs import TrackedJob
from tests.scheduler.fakes import Bench, decode_info, make_job, prefill_info
from tests.scheduler.preemption_bench import bench, decoding, is_out
from transport.messages import (
    Cancel,
    JobEnded,
    JobFailed,
    Preempt,
    Preempted,
    Release,
    Reserve,
    Resume,
    Resumed,
)


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


def test_nobody_is_stopped_where_that_would_not_make_enough_room() -> None:
    """Host memory holds one of the two, and both are sooner done than computed again."""
    b = bench(host_pages=3)
    for job_id in ("one", "two"):
        decoding(b, job_id, 190)
        b.core.jobs[job_id].progress.generated = 150
    b.submit(make_job("whole pool", prompt_tokens=380, max_tokens=4))
    assert b.take(Preempt) == []
    assert b.state("whole pool") == "queued"


def test_places_of_jobs_that_are_coming_are_no_room() -> None:
    b = Bench(prefill_info("p1"), decode_info("d1", max_jobs=2, host_pages=20), policy="srpt-oracle")
    decoding(b, "long", 380)
    b.submit(make_job("coming", max_tokens=100))
    b.submit(make_job("short", max_tokens=70))
    assert b.take(Preempt) == [Preempt(job_id="long", number=1)]


def test_all_workers_are_looked_at_in_turn() -> None:
    """Five run what is shorter than the job that waits; a few are looked at at a time."""
    b = busy_workers(6)
    for job in list(b.core.jobs.values())[:5]:
        job.progress.generated = 379
    b.submit(make_job("short", max_tokens=70))
    for _ in range(3):
        look_again(b)
    (peer,) = [peer for peer, message in b.sent if isinstance(message, Preempt)]
    assert peer == b"d6"


def test_nobody_is_stopped_on_a_worker_whose_context_is_too_small() -> None:
    b = Bench(prefill_info("p1"), policy="srpt-oracle")
    b.register(decode_info("small", capacity_pages=6, host_pages=20, max_context_tokens=400))
    decoding_on(b, "small", "long-1", 385)
    b.register(decode_info("large", capacity_pages=6, host_pages=20))
    decoding_on(b, "large", "long-2", 380)
    b.submit(make_job("short", prompt_tokens=410, max_tokens=5))
    for _ in range(3):
        look_again(b)
    assert {peer for peer, message in b.sent if isinstance(message, Preempt)} <= {b"large"}


def decoding_on(b: Bench, worker_id: str, job_id: str, tokens: int) -> None:
    b.submit(make_job(job_id, max_tokens=tokens))
    b.reserved(worker_id, job_id=job_id)
    b.prefilled(job_id=job_id)
    assert b.state(job_id) == "decoding"
    b.sent.clear()


def test_of_many_workers_some_are_looked_at_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.preemption.REVIEWED", 2)
    names = [f"d{number}" for number in range(4)]
    workers = (decode_info(name, capacity_pages=6, host_pages=20) for name in names)
    b = Bench(prefill_info("p1", max_jobs=20), *workers, policy="srpt-oracle", placement="round-robin")
    for kind, tokens, count in (("long", 380, 4), ("short", 200, 8)):  # two of the short ones fit where a long one was
        for number in range(count):
            b.now += 0.1
            b.submit(make_job(f"{kind}-{number}", max_tokens=tokens))
            for message in b.take(Preempt):
                at = next(worker for worker in b.core.workers if message.job_id in worker.jobs).worker_id
                b.hear(at.encode(), Preempted(job_id=message.job_id, worker_id=at, number=1))
            (reserve,) = b.take(Reserve)
            at = b.core.jobs[reserve.job.job_id].decode_worker
            b.reserved(at, reserve.job.job_id)
            b.prefilled(job_id=reserve.job.job_id)
    looked_at: list[set[str]] = []
    bring_back = b.core.preemption.bring_back

    def looks(head: TrackedJob | None, now: float) -> None:
        looked_at.append(set(b.core.preemption.due))
        bring_back(head, now)

    monkeypatch.setattr(b.core.preemption, "bring_back", looks)
    for _ in range(4):
        b.now += 0.1
        b.core.tick(b.now)
    assert [len(due) for due in looked_at] == [2] * 4
    assert sorted(name for due in looked_at for name in due) == sorted(2 * names)
