"""The core by a fake clock: every deadline and every failure in every state, lost workers and those that come back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from packhorse.errors import LinkClosedError
from tests.scheduler.fakes import GATEWAY, LAYOUT, STATES, Bench, decode_info, make_job, prefill_info
from transport.messages import (
    Cancel,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    JobDone,
    JobEnded,
    JobFailed,
    JobStats,
    Register,
    Registered,
    Rejected,
    Release,
    Reserve,
    WorkerLoad,
)

# ---- deadlines


@pytest.mark.parametrize("state", ["queued", *STATES])
def test_every_state_has_a_deadline(state: str) -> None:
    bench = Bench(
        prefill_info(), decode_info(),
        queue_seconds=20, reserve_seconds=21, prefill_seconds=22, decode_seconds=23, release_seconds=5,
    )  # fmt: skip
    seconds = {"queued": 20, "reserving": 21, "prefilling": 22, "decoding": 23}[state]
    if state == "queued":
        bench.submit(make_job("first"))
        bench.core.workers.get("p1").info = prefill_info(max_jobs=1)  # type: ignore[union-attr]
        bench.submit()
    else:
        bench.bring_to(state)
    bench.wait(seconds - 0.5)
    assert bench.state() == state
    bench.wait(1)
    (failure,) = [message for message in bench.take(JobFailed) if message.job_id == "job-1"]
    assert failure.error.code == "deadline_exceeded"
    assert state in failure.error.message
    bench.release_all()
    assert bench.state() is None


def test_a_release_without_an_answer_is_forgotten(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.bring_to("decoding")
    bench.hear(GATEWAY, Cancel(job_id="job-1", reason="left"))
    bench.wait(9.5)
    assert bench.state() == "releasing"
    bench.wait(1)
    bench.assert_idle()
    assert "d1 did not release job job-1" in caplog.text
    bench.take(Release)
    bench.reserved()  # it held the job after all
    assert len(bench.take(Release, "d1")) == 1


def test_a_job_done_ends_even_if_its_release_is_not_answered(bench: Bench) -> None:
    bench.bring_to("prefilling")
    bench.prefilled(finish="stop")
    bench.wait(11)
    assert len(bench.take(JobEnded)) == 1
    bench.assert_idle()


# ---- failures at the workers


@pytest.mark.parametrize(
    ("state", "worker_id", "other"),
    [
        ("reserving", "d1", None),
        ("prefilling", "p1", "d1"),
        ("prefilling", "d1", "p1"),
        ("decoding", "d1", None),
    ],
)
def test_a_failure_at_a_worker_fails_the_job_and_releases_the_other_side(
    bench: Bench, state: str, worker_id: str, other: str | None
) -> None:
    bench.bring_to(state)
    bench.failed(worker_id, LinkClosedError("the link broke"))
    bench.failed(worker_id, LinkClosedError("again"))
    error = bench.failure()
    assert (error.code, error.message) == ("link_closed", "the link broke")
    assert [peer.decode() for peer, _ in bench.sent] == ([other] if other else [])
    bench.release_all()
    bench.assert_idle()
    assert bench.core.totals == {"failed:link_closed": 1}


def timeout(bench: Bench, worker_id: str) -> None:
    for _ in range(6):
        bench.now += 1
        for worker in bench.core.workers:
            if worker.worker_id != worker_id:
                bench.core.handle(worker.peer, Heartbeat(worker_id=worker.worker_id, load=WorkerLoad()), bench.now)
        bench.sent += bench.core.tick(bench.now)


LOSSES: dict[str, Callable[[Bench, str], None]] = {
    "silence": timeout,
    "goodbye": lambda bench, worker_id: bench.hear(worker_id.encode(), Goodbye(worker_id=worker_id)),
    "unreachable": lambda bench, worker_id: bench.sent.extend(bench.core.unreachable(worker_id.encode(), bench.now)),
    "restart": lambda bench, worker_id: bench.register(
        (prefill_info if worker_id.startswith("p") else decode_info)(worker_id)
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("worker_id", ["p1", "d1"])
@pytest.mark.parametrize("state", STATES)
def test_a_lost_worker_fails_its_jobs_and_releases_the_other_side(
    bench: Bench, state: str, worker_id: str, loss: str
) -> None:
    bench.bring_to(state)
    LOSSES[loss](bench, worker_id)
    if state == "decoding" and worker_id == "p1":  # it held nothing any more
        assert bench.state() == "decoding"
        bench.decoded()
        assert len(bench.take(JobEnded)) == 1
    else:
        error = bench.failure()
        assert error.code == "worker_lost"
        assert worker_id in error.message
        assert state in error.message
        told = {"reserving": {"d1"}, "prefilling": {"p1", "d1"}, "decoding": {"d1"}}[state]
        assert {peer.decode() for peer, message in bench.sent if isinstance(message, Release)} == told - {worker_id}
        bench.release_all()
    bench.assert_idle()
    assert (bench.core.workers.get(worker_id) is not None) is (loss == "restart")


def test_a_prefill_that_is_done_after_the_decode_worker_was_lost(bench: Bench) -> None:
    bench.bring_to("prefilling")
    bench.sent += bench.core.unreachable(b"d1", bench.now)
    assert bench.failure().code == "worker_lost"
    bench.prefilled(ship_seconds=0.5, bytes_shipped=10)
    bench.assert_idle()


def test_queued_jobs_outlive_a_lost_worker_and_wait_for_another() -> None:
    bench = Bench(prefill_info(max_jobs=1), decode_info())
    bench.bring_to("decoding", "first")
    bench.submit(make_job("second"))
    bench.reserved(job_id="second")
    bench.submit(make_job("third"))
    bench.hear(b"p1", Goodbye(worker_id="p1"))
    assert bench.state("third") == "queued"
    bench.register(prefill_info("p2"))
    assert bench.state("third") == "reserving"


def test_a_lost_worker_is_told_to_register_again_and_is_used_again(bench: Bench) -> None:
    timeout(bench, "d1")
    bench.hear(b"d1", Heartbeat(worker_id="d1", load=WorkerLoad()))
    (ack,) = bench.take(HeartbeatAck, "d1")
    assert not ack.known
    bench.register(decode_info("d1"))
    assert len(bench.take(Registered, "d1")) == 1
    bench.bring_to("decoding")


def test_an_imposter_is_not_heard(bench: Bench) -> None:
    bench.bring_to("decoding")
    bench.hear(b"x", Goodbye(worker_id="d1"))
    bench.hear(b"x", Register(worker=decode_info("d1")))
    bench.hear(b"x", JobDone(job_id="job-1", worker_id="d1", stats=JobStats()))
    assert bench.state() == "decoding"


# ---- registration


def test_a_second_worker_under_a_live_id_or_with_another_layout_is_rejected(bench: Bench) -> None:
    bench.hear(b"other", Register(worker=decode_info("d1")))
    (rejected,) = bench.take(Rejected, b"other")
    assert "d1" in rejected.error.message
    differing = LAYOUT.model_copy(update={"kv_format": "k4v2"})
    bench.register(decode_info("d2", layout=differing))
    (rejected,) = bench.take(Rejected, "d2")
    assert rejected.error.code == "bad_config"
    assert "'k4v2'" in rejected.error.message
    assert "'raw'" in rejected.error.message
    assert [worker.worker_id for worker in bench.core.workers] == ["p1", "d1"]


def test_jobs_that_waited_through_a_change_of_layout_get_its_pages(bench: Bench) -> None:
    bench.core.workers.get("d1").info = decode_info(max_jobs=1)  # type: ignore[union-attr]
    bench.bring_to("decoding", "first")
    bench.submit(make_job("second", prompt_tokens=100, max_tokens=100))
    for worker_id in ("p1", "d1"):
        bench.hear(worker_id.encode(), Goodbye(worker_id=worker_id))
    bench.register(prefill_info(layout=LAYOUT.model_copy(update={"page_tokens": 16})))
    bench.register(decode_info(layout=LAYOUT.model_copy(update={"page_tokens": 16})))
    (reserve,) = bench.take(Reserve)
    assert reserve.pages == 12
