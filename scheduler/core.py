"""The scheduler without its sockets: every message and the passing of time in, the messages to send out.

Knows nothing of sockets, tasks or clocks: `now` is seconds on any clock that does not run backwards, so that a simulator can drive
the very same object. What follows from an event for the jobs is scheduler.lifecycle's, capacity is counted in scheduler.workers, order
and pairs are the policy's and the placement's. After every event the head of the queue is tried again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from packhorse.config import SchedulerConfig
from packhorse.errors import (
    ConfigError,
    PackhorseError,
    RequestError,
    UnavailableError,
    WorkerLostError,
)
from scheduler.admission import check_admission
from scheduler.experience import Experience, largest_room
from scheduler.jobs import CANCELLED, DONE, JobState, TrackedJob, failed
from scheduler.lifecycle import Lifecycle
from scheduler.pages import pages_needed
from scheduler.placement import PLACEMENTS
from scheduler.policies import POLICIES
from scheduler.workers import Worker, Workers
from transport.messages import (
    Cancel,
    ErrorInfo,
    Explain,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    Job,
    JobDone,
    JobFailed,
    Model,
    Paused,
    PredictionErrors,
    Preempted,
    PrefillDone,
    PrefixChanges,
    Register,
    Registered,
    Rejected,
    Release,
    Released,
    Reserved,
    Resumed,
    Status,
    StatusRequest,
    Submit,
    WorkerFailed,
)

log = logging.getLogger(__name__)

Outgoing = tuple[bytes, Model]
Entry = TypeVar("Entry")


class SchedulerCore:
    """All state of the scheduler. `epoch` tells one life of it from the next.

    Every public method returns the messages to send, as (peer, message) in the order in which they must leave.
    """

    def __init__(self, config: SchedulerConfig, epoch: str) -> None:
        self.config, self.epoch = config, epoch
        self.workers = Workers()
        self.experience = Experience(
            config.predictor, config.embedding, config.embedding_tokenizer, config.predictor_file
        )
        self.policy = _registered("policy", config.policy, POLICIES)(self.experience.typical)
        self.placement = _registered("placement", config.placement, PLACEMENTS)(self.experience.cost)
        self._out: list[Outgoing] = []
        self._life = Lifecycle(config, self.workers, self.policy, self.placement, self.experience, self._send)
        self.jobs, self.totals = self._life.jobs, self._life.totals
        self.decisions, self.preemption = self._life.decisions, self._life.preemption
        self._gateways: dict[bytes, float] = {}  # when each was last heard
        self._handlers: dict[type[Model], Callable[[bytes, Any, float], None]] = {
            Register: self._on_register,
            Heartbeat: self._on_heartbeat,
            Goodbye: self._on_goodbye,
            PrefixChanges: self._on_prefix_changes,
            Reserved: self._on_reserved,
            PrefillDone: self._on_prefill_done,
            JobDone: self._on_job_done,
            WorkerFailed: self._on_worker_failed,
            Released: self._on_released,
            Submit: self._on_submit,
            Cancel: self._on_cancel,
            StatusRequest: self._on_status_request,
            Explain: self._on_explain,
            Preempted: self._on_preempted,
            Resumed: self._on_resumed,
            Paused: self._on_paused,
        }

    # ---- events

    def handle(self, peer: bytes, message: Model, now: float) -> list[Outgoing]:
        """`message` came from `peer`. One that nobody may send to a scheduler is logged and ignored."""
        handler = self._handlers.get(type(message))
        if handler is None:
            log.warning("ignored %s from %s", type(message).__name__, _name(peer))
        else:
            handler(peer, message, now)
        return self._flush(now)

    def broken(self, peer: bytes, message: Model, now: float) -> list[Outgoing]:
        """`handle` raised, by a fault of ours. A job that was submitted fails: its gateway would wait for it without end."""
        if isinstance(message, Submit):
            error = PackhorseError("the scheduler failed over this job; its log has why")
            job = self.jobs.get(message.job.job_id)
            if job is None:
                self._refuse(peer, message.job, error)
            elif job.gateway == peer:
                self._life.end(job, failed(error), now)
        out, self._out = self._out, []
        return out

    def tick(self, now: float) -> list[Outgoing]:
        """Time has passed: overdue jobs, silent workers and silent gateways. To be called every second or oftener."""
        for worker in self.workers.silent(now - self.config.worker_timeout_seconds):
            self._lose(worker, f"not heard for {now - worker.seen_at:.1f} s", now)
        self._drop_silent_gateways(now)
        self.experience.typical.refresh(self.experience.cost, self.workers, now)
        self._life.pauses.end_due(now)
        self.preemption.review()
        self._life.expire(now)
        return self._flush(now)

    def unreachable(self, peer: bytes, now: float) -> list[Outgoing]:
        """A message to `peer` could not be sent: its worker is lost. A gateway has until it counts as silent."""
        for worker in self.workers.at(peer):
            self._lose(worker, "its connection is gone", now)
        return self._flush(now)

    def shut_down(self, now: float) -> list[Outgoing]:
        """Fails every job. The object is of no use afterwards."""
        for job in list(self.jobs.values()):
            self._life.end(job, failed(UnavailableError("the scheduler is shutting down")), now)
        out, self._out = self._out, []
        return out

    def next_deadline(self) -> float | None:
        """The earliest time at which a job may be overdue; None without jobs. For a driver that jumps in time."""
        return self._life.next_deadline()

    def next_pause_end(self) -> float | None:
        """When the next tool pause is over, to within a tick; None while no job pauses. For a driver that jumps in time."""
        return self._life.pauses.next_end()

    def status(self, now: float) -> Status:
        states = Counter(job.state for job in self.jobs.values())
        queued = (now - job.submitted_at for job in self.jobs.values() if job.state is JobState.QUEUED)
        errors = {**self.experience.errors(), "completion": self.decisions.errors.summary()}
        return Status(
            epoch=self.epoch,
            policy=self.policy.name,
            workers=tuple(worker.status(now) for worker in self.workers),
            jobs_by_state={state.value: states[state] for state in JobState if state is not JobState.ENDED},
            jobs_total=dict(self.totals),
            queue_seconds=max(queued, default=0.0),
            preemptions_total=self._life.num_preemptions,
            predictions={kind: PredictionErrors(**vars(summary)) for kind, summary in errors.items()},
        )

    # ---- workers

    def _on_register(self, peer: bytes, message: Register, now: float) -> None:
        info = message.worker
        known = self.workers.get(info.worker_id)
        try:
            if known is not None and known.peer != peer:
                raise ConfigError(f"worker id {info.worker_id} is taken by a live worker")
            if known is not None:
                self._lose(known, "it registered anew", now)
            worker = self.workers.add(info, peer, now)
            self._size_queued(now)
        except PackhorseError as error:
            log.error("refused %s worker %s: %s", info.role, info.worker_id, error)
            self._send(peer, Rejected(error=ErrorInfo.of(error)))
            return
        self.experience.joined(worker)
        if info.role == "decode":
            self.policy.room = largest_room(self.workers)
        log.info("%s worker %s registered: %s", info.role, info.worker_id, info.data_address or "no data address")
        heartbeat, timeout = self.config.heartbeat_seconds, self.config.worker_timeout_seconds
        self._send(peer, Registered(epoch=self.epoch, heartbeat_seconds=heartbeat, timeout_seconds=timeout))

    def _size_queued(self, now: float) -> None:
        """The first worker after none may bring another layout: jobs that waited meanwhile need other pages, or cannot go on."""
        layout = self.workers.layout
        if len(self.workers) == 1 and layout is not None:
            for job in [job for job in self.jobs.values() if job.state is JobState.QUEUED and job.needs_decode]:
                job.pages = job.run_pages = pages_needed(job.job, layout)
                if job.replay is not None:
                    lost = "all workers were lost while the job was preempted and queued, with some of its tokens generated"
                    self._life.end(job, failed(WorkerLostError(lost)), now)

    def _on_heartbeat(self, peer: bytes, message: Heartbeat, now: float) -> None:
        worker = self.workers.heard_from(message.worker_id, peer)
        if worker is not None:
            worker.seen_at, worker.load = (
                now,
                message.load.model_copy(update={"scores": {}}),
            )  # which are for forecasts alone
            self.experience.heard(worker, message.load)
        self._send(peer, HeartbeatAck(epoch=self.epoch, known=worker is not None))

    def _on_prefix_changes(self, peer: bytes, message: PrefixChanges, now: float) -> None:
        worker = self.workers.heard_from(message.worker_id, peer)
        if worker is None:
            return
        try:
            worker.prefixes.change(message.added, message.gone)
        except ValueError as error:
            log.warning("ignored the prefix pages that %s reports: %s", message.worker_id, error)

    def _on_goodbye(self, peer: bytes, message: Goodbye, now: float) -> None:
        worker = self.workers.heard_from(message.worker_id, peer)
        if worker is not None:
            self._lose(worker, "it shut down", now, expected=True)

    def _lose(self, worker: Worker, why: str, now: float, *, expected: bool = False) -> None:
        """The worker is gone and holds nothing: fail its jobs, and release them on the other side."""
        jobs = list(worker.jobs.values())
        level = logging.INFO if expected and not jobs else logging.WARNING
        log.log(level, "lost %s worker %s with %d jobs: %s", worker.info.role, worker.worker_id, len(jobs), why)
        self.workers.remove(worker.worker_id)
        self.experience.left(worker)
        self.policy.room = largest_room(self.workers) or self.policy.room
        for job in jobs:
            stage = job.state.value
            job.dropped(worker.worker_id)
            lost = WorkerLostError(
                f"{worker.info.role} worker {worker.worker_id} was lost while the job was {stage}: {why}"
            )
            self._life.end(job, failed(lost), now)

    # ---- jobs, as the workers tell of them

    def _on_reserved(self, peer: bytes, message: Reserved, now: float) -> None:
        if self.workers.heard_from(message.worker_id, peer) is None:
            return
        job = self.jobs.get(message.job_id)
        if job is None:  # forgotten here after its release deadline, yet held there
            self._send(peer, Release(job_id=message.job_id, reason="unknown job"))
        elif job.reserved(message.worker_id, now):
            job.held_pages = message.held_pages
            self._life.start_prefill(job)

    def _on_prefill_done(self, peer: bytes, message: PrefillDone, now: float) -> None:
        job = self._job_at(peer, message)
        ended = message.finish_reason is not None
        if job is None or not job.prefilled(message.worker_id, ended, message.stats, now):
            return
        job.progress.prefilled(now)
        self.experience.prefilled(job, message.stats, self.workers.get(job.decode_worker))
        if ended:
            self._life.end(job, DONE, now)
        elif not job.decode_worker:
            lacks = PackhorseError(
                f"prefill worker {message.worker_id} left a job of one token without a finish reason"
            )
            self._life.end(job, failed(lacks), now)
        else:
            self._life.decodes(job)

    def _on_preempted(self, peer: bytes, message: Preempted, now: float) -> None:
        job, worker = self._job_at(peer, message), self.workers.get(message.worker_id)
        if job is not None and worker is not None and worker.worker_id in job.holds:
            self.experience.moved(worker, message)
            if message.replay is not None:
                self._life.requeue(job, worker, message.number, message.replay, now)
            else:
                self.preemption.is_out(worker, job, message.number)

    def _on_resumed(self, peer: bytes, message: Resumed, now: float) -> None:
        job, worker = self._job_at(peer, message), self.workers.get(message.worker_id)
        if job is not None and worker is not None and worker.worker_id in job.holds:
            self.preemption.is_back(worker, job, now)

    def _on_paused(self, peer: bytes, message: Paused, now: float) -> None:
        job, worker = self._job_at(peer, message), self.workers.get(message.worker_id)
        if job is not None and worker is not None and worker.worker_id in job.holds:
            self._life.pauses.begin(worker, job, now)

    def _on_job_done(self, peer: bytes, message: JobDone, now: float) -> None:
        """A prefill worker that still holds the job is about to say PrefillDone, so it is not asked to release it."""
        job = self._job_at(peer, message)
        if job is not None and job.decoded(message.worker_id, message.stats):
            self._life.end(job, DONE, now, ask=False)

    def _on_worker_failed(self, peer: bytes, message: WorkerFailed, now: float) -> None:
        job = self._job_at(peer, message)
        if job is not None and job.dropped(message.worker_id):
            log.warning("job %s failed at worker %s: %s", job.job_id, message.worker_id, message.error.message)
            self._life.end(job, failed(message.error.error()), now)

    def _on_released(self, peer: bytes, message: Released, now: float) -> None:
        job = self._job_at(peer, message)
        if job is not None and job.state is JobState.RELEASING and job.dropped(message.worker_id):
            self._life.settle(job)

    def _job_at(
        self, peer: bytes, message: PrefillDone | JobDone | WorkerFailed | Released | Preempted | Resumed | Paused
    ) -> TrackedJob | None:
        """The job that a worker tells of; None when there is none such, or the peer is not that worker: late or foreign word."""
        job = self.jobs.get(message.job_id)
        if job is None or self.workers.heard_from(message.worker_id, peer) is None:
            log.debug("ignored %s of job %s from %s", type(message).__name__, message.job_id, _name(peer))
            return None
        return job

    # ---- gateways

    def _on_submit(self, peer: bytes, message: Submit, now: float) -> None:
        self._gateways[peer] = now
        job = message.job
        if job.job_id in self.jobs:
            self._refuse(peer, job, RequestError(f"job id {job.job_id} is taken by a job under way", param="job_id"))
            return
        layout = self.workers.layout
        pages = pages_needed(job, layout) if layout is not None and job.sampling.max_tokens > 1 else 0
        tracked = TrackedJob(job, peer, pages, self._life.limits, now)
        try:
            check_admission(tracked, self.workers)
            self._life.queue(tracked, now)
        except PackhorseError as error:
            self._refuse(peer, job, error)
            self.decisions.refused(job, error)
            self.totals[failed(error).label] += 1
            return

    def _refuse(self, peer: bytes, job: Job, error: PackhorseError) -> None:
        log.info("job %s refused: %s", job.job_id, error)
        self._send(peer, JobFailed(job_id=job.job_id, error=ErrorInfo.of(error)))

    def _on_cancel(self, peer: bytes, message: Cancel, now: float) -> None:
        self._gateways[peer] = now
        job = self.jobs.get(message.job_id)
        if job is not None and job.gateway == peer:
            self._life.end(job, CANCELLED, now, reason=message.reason)

    def _on_status_request(self, peer: bytes, message: StatusRequest, now: float) -> None:
        self._gateways[peer] = now
        self._send(peer, self.status(now))

    def _on_explain(self, peer: bytes, message: Explain, now: float) -> None:
        self._gateways[peer] = now
        self._send(peer, self._life.explain(message))

    def _drop_silent_gateways(self, now: float) -> None:
        oldest = now - 2 * self.config.worker_timeout_seconds
        gone = {peer for peer, heard_at in self._gateways.items() if heard_at < oldest}
        if not gone:
            return
        log.warning("gateways not heard any more: %s", ", ".join(sorted(_name(peer) for peer in gone)))
        for peer in gone:
            del self._gateways[peer]
        for job in [job for job in self.jobs.values() if job.gateway in gone]:
            self._life.end(job, CANCELLED, now, reason="its gateway is gone")

    # ---- out

    def _send(self, peer: bytes, message: Model) -> None:
        self._out.append((peer, message))

    def _flush(self, now: float) -> list[Outgoing]:
        self._life.place_heads(now)
        out, self._out = self._out, []
        return out


def _registered(field: str, name: str, registry: Mapping[str, Entry]) -> Entry:
    """Raises ConfigError that names what is allowed."""
    if name not in registry:
        raise ConfigError(f"{field}={name!r}: known are {', '.join(sorted(registry))}", param=field)
    return registry[name]


def _name(peer: bytes) -> str:
    return peer.decode(errors="replace")
