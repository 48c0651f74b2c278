"""The core by a fake clock: the life of a job, order, cancelling, gateways and status."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from packhorse.errors import LinkClosedError
from tests.scheduler.fakes import GATEWAY, STATES, Bench, decode_info, make_job, prefill_info
from transport.messages import (
    Cancel,
    Goodbye,
    Heartbeat,
    JobEnded,
    JobFailed,
    Placed,
    Release,
    Reserve,
    StartPrefill,
    Status,
    StatusRequest,
    Tokens,
    WorkerLoad,
)

# ---- the life of a job


def test_the_whole_way(bench: Bench) -> None:
    bench.submit(make_job(prompt_tokens=100, max_tokens=40))
    (reserve,) = bench.take(Reserve, "d1")
    assert (reserve.pages, reserve.prefill_worker, reserve.job.job_id) == (2, "p1", "job-1")
    bench.now += 0.5
    bench.reserved()
    (start,) = bench.take(StartPrefill, "p1")
    assert (start.decode_worker, start.data_address, start.queue_seconds) == ("d1", "zmq://d1:1", 0.5)
    assert bench.take(Placed, GATEWAY) == [
        Placed(job_id="job-1", prefill_worker="p1", decode_worker="d1", queue_seconds=0.5)
    ]
    bench.prefilled(bytes_shipped=7)
    assert bench.state() == "decoding"
    bench.decoded(completion_tokens=40)
    (ended,) = bench.take(JobEnded, GATEWAY)
    assert (ended.stats.bytes_shipped, ended.stats.completion_tokens) == (7, 40)
    assert bench.sent == []
    bench.assert_idle()
    assert bench.core.totals == {"done": 1}


def test_a_prompt_is_inbound_until_it_has_arrived(bench: Bench) -> None:
    decode = bench.core.workers.get("d1")
    assert decode is not None
    for job_id in ("job-1", "job-2"):
        bench.submit(make_job(job_id))
    bench.reserved()
    assert decode.inbound == {"job-1", "job-2"}
    bench.prefilled()
    assert decode.inbound == {"job-2"}
    bench.failed("d1", LinkClosedError("gone"), "job-2")
    assert not decode.inbound
    assert bench.core.workers.get("p1").inbound == set()  # type: ignore[union-attr]


def test_max_tokens_1_needs_no_decode_worker() -> None:
    bench = Bench(prefill_info("p1"))
    bench.submit(make_job(max_tokens=1))
    (start,) = bench.take(StartPrefill, "p1")
    assert (start.decode_worker, start.data_address) == ("", None)
    bench.prefilled(finish="length")
    (ended,) = bench.take(JobEnded)
    assert ended.stats.decode_worker == ""
    bench.assert_idle()


def test_a_job_of_one_token_that_did_not_end_is_a_failure() -> None:
    bench = Bench(prefill_info("p1"))
    bench.submit(make_job(max_tokens=1))
    bench.prefilled(finish=None)
    assert bench.failure().code == "internal_error"
    bench.assert_idle()


def test_token_1_ends_the_job_and_it_ends_when_the_decode_side_let_go(bench: Bench) -> None:
    bench.bring_to("prefilling")
    bench.prefilled(finish="stop")
    assert bench.take(JobEnded) == []
    assert len(bench.take(Release, "d1")) == 1
    bench.released("d1")
    (ended,) = bench.take(JobEnded)
    assert ended.stats.decode_worker == ""
    bench.assert_idle()


def test_the_decode_worker_may_be_done_before_the_prefill_worker_says_so(bench: Bench) -> None:
    bench.bring_to("prefilling")
    bench.decoded(completion_tokens=5)
    assert bench.sent == []
    bench.prefilled(bytes_shipped=9)
    (ended,) = bench.take(JobEnded)
    assert (ended.stats.completion_tokens, ended.stats.bytes_shipped) == (5, 9)
    bench.assert_idle()


def test_a_job_that_is_done_stays_done_whatever_becomes_of_the_prefill_worker(bench: Bench) -> None:
    bench.bring_to("prefilling")
    bench.decoded()
    bench.hear(b"p1", Goodbye(worker_id="p1"))
    assert len(bench.take(JobEnded)) == 1
    assert bench.take(JobFailed) == []
    bench.assert_idle()


# ---- order and capacity


def test_nothing_overtakes_the_head_of_the_queue() -> None:
    bench = Bench(prefill_info(), decode_info(capacity_pages=4))
    bench.submit(make_job("big-1", prompt_tokens=200, max_tokens=10))
    bench.submit(make_job("big-2", prompt_tokens=200, max_tokens=10))
    bench.submit(make_job("small", prompt_tokens=2, max_tokens=1))
    assert [message.job.job_id for message in bench.take(Reserve)] == ["big-1"]
    assert bench.take(StartPrefill) == []
    bench.reserved(job_id="big-1")
    bench.prefilled(job_id="big-1")
    assert bench.take(Reserve) == []
    bench.decoded(job_id="big-1")
    assert [message.job.job_id for message in bench.take(Reserve)] == ["big-2"]
    assert [message.job.job_id for message in bench.take(StartPrefill, "p1")] == ["big-1", "small"]


@pytest.mark.parametrize(
    "event",
    [
        lambda bench: bench.register(decode_info("d2")),
        lambda bench: bench.failed("d1", LinkClosedError("x"), "first"),
        lambda bench: (bench.hear(GATEWAY, Cancel(job_id="first", reason="left")), bench.released("d1", "first")),
        lambda bench: bench.wait(10.5),  # the first job's reservation, then its release, are overdue
    ],
)
def test_the_head_is_tried_again_at_every_event(event: Callable[[Bench], object]) -> None:
    bench = Bench(prefill_info(), decode_info("d1", max_jobs=1), release_seconds=0.1)
    for name in ("first", "head"):
        bench.submit(make_job(name))
    bench.take(Reserve)
    event(bench)
    assert [message.job.job_id for message in bench.take(Reserve)] == ["head"]


def test_the_next_becomes_the_head_when_the_head_leaves() -> None:
    bench = Bench(prefill_info(), decode_info(capacity_pages=4))
    for name, tokens in (("first", 130), ("head", 260), ("next", 10)):
        bench.submit(make_job(name, prompt_tokens=tokens, max_tokens=10))
    bench.take(Reserve)
    bench.hear(GATEWAY, Cancel(job_id="head", reason="left"))
    assert [message.job.job_id for message in bench.take(Reserve)] == ["next"]


def test_a_worker_in_a_release_wait_keeps_its_place() -> None:
    bench = Bench(prefill_info(max_jobs=1), decode_info())
    bench.bring_to("prefilling", "first")
    bench.submit(make_job("second"))
    bench.hear(GATEWAY, Cancel(job_id="first", reason="left"))
    bench.released("d1", "first")
    assert bench.take(Reserve) == []
    bench.released("p1", "first")
    assert len(bench.take(Reserve)) == 1


# ---- cancelling


def test_cancelling_a_queued_job_leaves_nothing() -> None:
    bench = Bench(prefill_info(max_jobs=1), decode_info())
    bench.bring_to("prefilling", "first")
    bench.submit(make_job("second"))
    bench.hear(GATEWAY, Cancel(job_id="second", reason="left"))
    assert bench.state("second") is None
    assert bench.sent == []


@pytest.mark.parametrize(
    ("state", "holders"), [("reserving", {"d1"}), ("prefilling", {"p1", "d1"}), ("decoding", {"d1"})]
)
def test_cancelling_releases_whoever_holds_the_job(bench: Bench, state: str, holders: set[str]) -> None:
    bench.bring_to(state)
    bench.hear(b"somebody", Cancel(job_id="job-1", reason="not mine"))
    assert bench.state() == state
    bench.hear(GATEWAY, Cancel(job_id="job-1", reason="client left"))
    bench.hear(GATEWAY, Cancel(job_id="job-1", reason="again"))
    assert bench.state() == "releasing"
    assert {peer.decode() for peer, message in bench.sent if isinstance(message, Release)} == holders
    assert len(bench.take(Release)) == len(holders)
    for worker_id in holders:
        bench.released(worker_id)
        bench.released(worker_id)
    assert bench.sent == []  # nobody waits for it: no terminal message
    bench.assert_idle()
    assert bench.core.totals == {"cancelled": 1}


def test_word_that_crosses_a_release_counts_as_let_go(bench: Bench) -> None:
    bench.bring_to("prefilling")
    bench.hear(GATEWAY, Cancel(job_id="job-1", reason="left"))
    bench.prefilled()
    bench.decoded()
    bench.assert_idle()
    bench.released("p1")
    bench.released("d1")
    assert bench.take(JobEnded) == []


@pytest.mark.parametrize("state", STATES)
def test_a_release_that_nobody_asked_for_is_ignored(bench: Bench, state: str) -> None:
    bench.bring_to(state)
    bench.released("p1")
    bench.released("d1")
    assert bench.state() == state
    assert set(bench.core.jobs["job-1"].holds) == ({"d1"} if state == "decoding" else {"p1", "d1"})


# ---- gateways, status, the rest


def test_a_silent_gateway_has_its_jobs_cancelled(bench: Bench) -> None:
    bench.bring_to("decoding")
    bench.submit(make_job("theirs"), b"gateway-2")
    bench.reserved(job_id="theirs")
    bench.wait(9)  # GATEWAY keeps asking for the status
    assert bench.state("theirs") == "prefilling"
    bench.wait(3)
    assert bench.state("theirs") == "releasing"
    assert bench.state() == "decoding"
    bench.release_all()
    assert bench.take(JobFailed) == []


def test_status_tells_of_workers_and_jobs(bench: Bench) -> None:
    bench.bring_to("decoding", "a")
    bench.bring_to("reserving", "b")
    bench.hear(b"d1", Heartbeat(worker_id="d1", load=WorkerLoad(jobs=1, pages_used=3)))
    bench.now += 2
    bench.sent.clear()
    bench.hear(GATEWAY, StatusRequest())
    (status,) = bench.take(Status, GATEWAY)
    assert (status.epoch, status.policy) == ("epoch-1", "fcfs")
    assert status.jobs_by_state == {"queued": 0, "reserving": 1, "prefilling": 0, "decoding": 1, "releasing": 0}
    decode = status.workers[1]
    assert (decode.jobs, decode.load.pages_used, decode.heartbeat_age_seconds) == (2, 3, 2)


def test_what_nobody_may_send_is_ignored(bench: Bench) -> None:
    bench.hear(b"d1", Tokens(worker_id="d1", outputs=()))
    bench.hear(GATEWAY, Cancel(job_id="never", reason="x"))
    bench.released("d1", "never")
    bench.prefilled(job_id="never")
    bench.decoded(job_id="never")
    bench.failed("d1", LinkClosedError("x"), "never")
    assert bench.sent == []


def test_shutting_down_fails_every_job(bench: Bench) -> None:
    bench.bring_to("prefilling")
    out = bench.core.shut_down(bench.now)
    failures = [message for _, message in out if isinstance(message, JobFailed)]
    assert [failure.error.code for failure in failures] == ["unavailable"]
    assert {peer for peer, message in out if isinstance(message, Release)} == {b"p1", b"d1"}


def test_a_driver_may_jump_to_the_next_deadline(bench: Bench) -> None:
    assert bench.core.next_deadline() is None
    bench.submit()
    assert bench.core.next_deadline() == bench.now + bench.core.config.reserve_seconds
