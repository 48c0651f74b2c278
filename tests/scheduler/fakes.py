"""Small makers of jobs and workers, and a bench that drives a SchedulerCore by hand with a clock of its own."""

from __future__ import annotations

from typing import Any, TypeVar

from packhorse.config import SchedulerConfig
from packhorse.errors import PackhorseError
from scheduler.core import Outgoing, SchedulerCore
from scheduler.jobs import StateSeconds, TrackedJob
from transport.messages import (
    ErrorInfo,
    Heartbeat,
    Job,
    JobDone,
    JobFailed,
    JobStats,
    KVLayout,
    Model,
    PrefillDone,
    Register,
    Release,
    Released,
    Reserved,
    Sampling,
    StatusRequest,
    Submit,
    WorkerFailed,
    WorkerInfo,
    WorkerLoad,
)

AnyMessage = TypeVar("AnyMessage", bound=Model)

LAYOUT = KVLayout(
    model="m", revision="r", layers=2, kv_heads=1, head_dim=8, dtype="float32", kv_format="raw",
    page_tokens=64, sink_tokens=4, page_bytes=4096, layout_version=1,
)  # fmt: skip
LIMITS = StateSeconds(queued=120, reserving=10, prefilling=300, decoding=3600, releasing=10)
GATEWAY = b"gateway-1"
STATES = ("reserving", "prefilling", "decoding")  # of a job that has workers


def make_job(job_id: str = "job-1", *, prompt_tokens: int = 10, max_tokens: int = 20) -> Job:
    return Job(
        job_id=job_id,
        prompt=(1,) * prompt_tokens,
        sampling=Sampling(max_tokens=max_tokens, seed=0),
        reply_to="tcp://127.0.0.1:1",
    )


def tracked(job_id: str = "job-1", *, pages: int = 0, now: float = 0.0, **sizes: int) -> TrackedJob:
    return TrackedJob(make_job(job_id, **sizes), GATEWAY, pages, LIMITS, now)


def prefill_info(worker_id: str = "p1", **changes: Any) -> WorkerInfo:
    fields = {"worker_id": worker_id, "role": "prefill", "layout": LAYOUT, "max_context_tokens": 1000, "max_jobs": 4}
    return WorkerInfo(**{**fields, **changes})


def decode_info(worker_id: str = "d1", **changes: Any) -> WorkerInfo:
    own = {"role": "decode", "max_jobs": 8, "capacity_pages": 20, "data_address": f"zmq://{worker_id}:1"}
    return prefill_info(worker_id, **{**own, **changes})


class Bench:
    """A core with a clock. What it sends lies in `sent` until `take` fetches it."""

    def __init__(self, *workers: WorkerInfo, **config: Any) -> None:
        self.core = SchedulerCore(SchedulerConfig(**{"policy": "fcfs", "predictor": "none", **config}), epoch="epoch-1")
        self.now = 1000.0
        self.sent: list[Outgoing] = []
        for info in workers:
            self.register(info)
        self.sent.clear()

    def hear(self, peer: bytes, message: Model) -> None:
        self.sent += self.core.handle(peer, message, self.now)

    def wait(self, seconds: float, *, alive: bool = True) -> None:
        """Time passes, in which workers (if `alive`) and gateways keep talking."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + 1.0, until)
            if alive:
                self.beat()
            self.sent += self.core.tick(self.now)

    def beat(self) -> None:
        for worker in list(self.core.workers):
            self.core.handle(worker.peer, Heartbeat(worker_id=worker.worker_id, load=WorkerLoad()), self.now)
        self.core.handle(GATEWAY, StatusRequest(), self.now)

    def take(self, kind: type[AnyMessage], peer: str | bytes | None = None) -> list[AnyMessage]:
        """The messages of this kind sent since the last take of it (to `peer`); the others stay."""
        name = peer.encode() if isinstance(peer, str) else peer
        taken = [item for item in self.sent if isinstance(item[1], kind) and name in (None, item[0])]
        self.sent = [item for item in self.sent if item not in taken]
        return [message for _, message in taken if isinstance(message, kind)]

    # ---- what peers say

    def register(self, info: WorkerInfo) -> None:
        self.hear(info.worker_id.encode(), Register(worker=info))

    def submit(self, job: Job | None = None, gateway: bytes = GATEWAY) -> str:
        job = job or make_job()
        self.hear(gateway, Submit(job=job))
        return job.job_id

    def reserved(self, worker_id: str = "d1", job_id: str = "job-1") -> None:
        self.hear(worker_id.encode(), Reserved(job_id=job_id, worker_id=worker_id))

    def prefilled(self, worker_id: str = "p1", job_id: str = "job-1", finish: Any = None, **stats: Any) -> None:
        done = PrefillDone(job_id=job_id, worker_id=worker_id, finish_reason=finish, stats=JobStats(**stats))
        self.hear(worker_id.encode(), done)

    def decoded(self, worker_id: str = "d1", job_id: str = "job-1", **stats: Any) -> None:
        self.hear(worker_id.encode(), JobDone(job_id=job_id, worker_id=worker_id, stats=JobStats(**stats)))

    def failed(self, worker_id: str, error: PackhorseError, job_id: str = "job-1") -> None:
        self.hear(worker_id.encode(), WorkerFailed(job_id=job_id, worker_id=worker_id, error=ErrorInfo.of(error)))

    def released(self, worker_id: str, job_id: str = "job-1") -> None:
        self.hear(worker_id.encode(), Released(job_id=job_id, worker_id=worker_id))

    # ---- what tests ask

    def bring_to(self, state: str, job_id: str = "job-1") -> None:
        """Submits a job and takes it to this state on p1 and d1."""
        self.submit(make_job(job_id))
        steps = ["reserving", "prefilling", "decoding"]
        if state in steps[1:]:
            self.reserved(job_id=job_id)
        if state in steps[2:]:
            self.prefilled(job_id=job_id)
        assert self.state(job_id) == state
        self.sent.clear()

    def state(self, job_id: str = "job-1") -> str | None:
        job = self.core.jobs.get(job_id)
        return job.state.value if job is not None else None

    def failure(self, gateway: bytes = GATEWAY) -> ErrorInfo:
        """The one JobFailed that the gateway got."""
        (message,) = self.take(JobFailed, gateway)
        return message.error

    def release_all(self) -> None:
        """Workers answer every Release."""
        while releases := [item for item in self.sent if isinstance(item[1], Release)]:
            for peer, message in releases:
                assert isinstance(message, Release)
                self.sent.remove((peer, message))
                self.released(peer.decode(), message.job_id)

    def assert_idle(self) -> None:
        """No job, no place taken, no page reserved."""
        assert self.core.jobs == {}
        assert len(self.core.policy) == 0
        for worker in self.core.workers:
            assert (len(worker.jobs), worker.reserved_pages, worker.prompt_tokens) == (0, 0, 0), worker.worker_id
