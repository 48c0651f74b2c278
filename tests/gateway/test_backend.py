"""Jobs out, tokens in order back; a scheduler that is lost in any way fails what is open."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from gateway.backend import Backend, Events, advertised
from packhorse.errors import ConfigError, PackhorseError, TransportError, UnavailableError, WorkerLostError
from tests.gateway.cluster import FakeCluster
from tests.gateway.conftest import FAST
from tests.waiting import PATIENCE_SECONDS, until
from transport.messages import Cancel, Job, Placed, Registered, Sampling, StatusRequest, TokenOutput

_numbers = itertools.count()


def make_job(**sampling: int) -> Job:
    sampling = {"max_tokens": 8, "seed": 1} | sampling
    return Job(job_id=f"job-{next(_numbers)}", prompt=(1,), sampling=Sampling(**sampling), reply_to="tcp://here:1")


async def take(events: Events) -> TokenOutput | PackhorseError:
    return (await asyncio.wait_for(events.get(), PATIENCE_SECONDS))[1]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_outputs_are_delivered_by_index(backend: Backend, cluster: FakeCluster, order: tuple[int, ...]) -> None:
    cluster.hold = 0
    job = make_job()
    events = backend.submit([job])
    outputs = [cluster.output(job, i, 40 + i, finish_reason="stop" if i == 2 else None) for i in range(3)]
    for place in order:
        cluster.push(outputs[place], outputs[place])
    assert [await take(events) for _ in range(3)] == outputs
    await asyncio.sleep(0.02)
    assert events.empty()
    assert backend.num_open == 0


async def test_what_a_finished_job_still_gets_is_dropped(backend: Backend, cluster: FakeCluster) -> None:
    job = make_job(max_tokens=2)
    events = backend.submit([job])
    await take(events)
    assert isinstance(last := await take(events), TokenOutput)
    assert last.finish_reason == "length"
    cluster.push(cluster.output(job, 2, 9))
    cluster.fail(job.job_id, WorkerLostError("too late"))
    await asyncio.sleep(0.05)
    assert events.empty()


async def test_events_of_a_request_carry_the_place_of_their_job(backend: Backend, cluster: FakeCluster) -> None:
    events = backend.submit([make_job(max_tokens=1), make_job(max_tokens=1)])
    assert sorted([(await events.get())[0], (await events.get())[0]]) == [0, 1]


async def test_a_failed_job_ends_with_the_schedulers_error(backend: Backend, cluster: FakeCluster) -> None:
    cluster.errors = {1: WorkerLostError("decode-0 is gone", param=None)}
    events = backend.submit([make_job()])
    assert isinstance(await take(events), TokenOutput)
    error = await take(events)
    assert isinstance(error, WorkerLostError)
    assert error.message == "decode-0 is gone"
    assert backend.num_open == 0


async def test_cancel_reaches_the_scheduler_once(backend: Backend, cluster: FakeCluster) -> None:
    cluster.hold = 0
    job = make_job()
    backend.submit([job])
    backend.cancel(job.job_id, "no reason")
    backend.cancel(job.job_id, "no reason")
    assert [message for message in cluster.sent if isinstance(message, Cancel)] == [
        Cancel(job_id=job.job_id, reason="no reason")
    ]
    assert backend.num_open == 0


async def test_a_silent_scheduler_fails_all_and_may_come_back(backend: Backend, cluster: FakeCluster) -> None:
    cluster.hold = 1
    job = make_job()
    events = backend.submit([job])
    assert isinstance(await take(events), TokenOutput)
    cluster.answers = False
    error = await take(events)
    assert isinstance(error, UnavailableError)
    assert "silent" in error.message
    assert job.job_id in cluster.cancelled
    with pytest.raises(UnavailableError):
        backend.submit([make_job()])
    cluster.answers = True
    await until(lambda: backend.status is not None)
    cluster.hold = None
    assert isinstance(await take(backend.submit([make_job(max_tokens=1)])), TokenOutput)


async def test_a_pause_of_this_process_is_no_silence(backend: Backend, cluster: FakeCluster) -> None:
    import time

    time.sleep(2 * FAST["silence_seconds"])  # noqa: ASYNC251  the pause is what is tested
    await asyncio.sleep(3 * FAST["poll_seconds"])
    assert backend.status is not None


async def test_a_restarted_scheduler_fails_what_was_open(backend: Backend, cluster: FakeCluster) -> None:
    cluster.hold = 1
    events = backend.submit([make_job()])
    assert isinstance(await take(events), TokenOutput)
    cluster.epoch = "epoch-2"
    error = await take(events)
    assert isinstance(error, UnavailableError)
    assert "restarted" in error.message
    await until(lambda: backend.status is not None and backend.status.epoch == "epoch-2")


async def test_a_broken_connection_fails_all_at_once_and_cancels_later(backend: Backend, cluster: FakeCluster) -> None:
    cluster.hold = 0
    job = make_job()
    events = backend.submit([job])
    cluster.connected = False
    backend.disconnected()
    assert isinstance(events.get_nowait()[1], UnavailableError)
    assert backend.status is None
    assert job.job_id not in cluster.cancelled
    cluster.connected = True
    await until(lambda: job.job_id in cluster.cancelled)


async def test_without_a_connection_nothing_is_half_submitted(backend: Backend, cluster: FakeCluster) -> None:
    cluster.connected = False
    with pytest.raises(UnavailableError, match="no connection"):
        backend.submit([make_job(), make_job()])
    assert backend.num_open == 0


async def test_tokens_that_never_arrive_end_the_job_with_an_error(backend: Backend, cluster: FakeCluster) -> None:
    cluster.script = lambda job: [41, 42]
    lost = cluster.outputs
    cluster.outputs = lambda job: lost(job)[:1]  # type: ignore[method-assign]
    events = backend.submit([make_job()])
    assert isinstance(await take(events), TokenOutput)
    error = await take(events)
    assert isinstance(error, TransportError)
    assert "never arrived" in error.message


async def test_messages_that_make_no_sense_are_dropped(
    backend: Backend, cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.inbox.put_nowait(Registered(epoch="1", heartbeat_seconds=1, timeout_seconds=1))
    cluster.tokens.inbox.put_nowait("no tokens")  # type: ignore[arg-type]
    cluster.inbox.put_nowait(Placed(job_id="?", prefill_worker="p", decode_worker="d", queue_seconds=0))
    job = make_job(max_tokens=1)
    assert isinstance(await take(backend.submit([job])), TokenOutput)
    assert "not for a gateway" in caplog.text


async def test_the_scheduler_is_asked_again_and_again(backend: Backend, cluster: FakeCluster) -> None:
    await until(lambda: sum(isinstance(message, StatusRequest) for message in cluster.sent) > 3)


async def test_stop_fails_what_is_open(cluster: FakeCluster, no_tasks: None) -> None:
    cluster.hold = 0
    backend = Backend(cluster, cluster.tokens, **FAST)
    await backend.start()
    await until(lambda: backend.status is not None)
    job = make_job()
    events = backend.submit([job])
    await backend.stop()
    await backend.stop()
    assert isinstance(events.get_nowait()[1], UnavailableError)
    assert job.job_id in cluster.cancelled


def test_the_advertised_address() -> None:
    assert advertised("tcp://0.0.0.0:5700", "node-3") == "tcp://node-3:5700"
    assert advertised("tcp://[::]:5700", "fd00::1") == "tcp://[fd00::1]:5700"
    assert advertised("tcp://127.0.0.1:5700", None) == "tcp://127.0.0.1:5700"
    for everywhere in ("tcp://0.0.0.0:5700", "tcp://[::]:5700", "tcp://*:5700"):
        with pytest.raises(ConfigError, match="advertise"):
            advertised(everywhere, None)
