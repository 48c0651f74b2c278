"""The scheduler without its sockets: every message and the passing of time in, the messages to send out.

Knows nothing of sockets, tasks or clocks: `now` is seconds on any clock that does not run backwards, so that a simulator can drive
the very same object. Jobs move by scheduler.jobs, capacity is counted in scheduler.workers, order and pairs are the policy's and
the placement's. After every event the head of the queue is tried again.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from packhorse.config import SchedulerConfig
from packhorse.errors import (
    ConfigError,
    DeadlineError,
    PackhorseError,
    RequestError,
    UnavailableError,
    WorkerLostError,
)
from scheduler.admission import check_admission
from scheduler.decisions import Decisions
from scheduler.experience import Experience, room_of
from scheduler.jobs import CANCELLED, DONE, JobState, Outcome, StateSeconds, TrackedJob, failed
from scheduler.pages import pages_needed
from scheduler.placement import PLACEMENTS
from scheduler.policies import POLICIES
from scheduler.preemption import Preemption
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
    JobEnded,
    JobFailed,
    Model,
    Placed,
    Preempt,
    Preempted,
    PrefillDone,
    Register,
    Registered,
    Rejected,
    Release,
    Released,
    Reserve,
    Reserved,
    Resume,
    StartPrefill,
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
        self.experience = Experience(config.predictor)
        self.decisions = Decisions()
        self.jobs: dict[str, TrackedJob] = {}
        self.policy = _registered("policy", config.policy, POLICIES)(self.experience.typical)
        self.placement = _registered("placement", config.placement, PLACEMENTS)(self.experience.cost)
        self.preemption = Preemption(self.policy, self.workers, self._stop, self._call_back)
        self.totals: Counter[str] = Counter()
        self._gateways: dict[bytes, float] = {}  # when each was last heard
        self._deadlines: list[tuple[float, str]] = []  # a heap; void where the job's deadline is another now
        self._out: list[Outgoing] = []
        self._limits = StateSeconds(
            queued=config.queue_seconds,
            reserving=config.reserve_seconds,
            prefilling=config.prefill_seconds,
            decoding=config.decode_seconds,
            releasing=config.release_seconds,
        )
        self._handlers: dict[type[Model], Callable[[bytes, Any, float], None]] = {
            Register: self._on_register,
            Heartbeat: self._on_heartbeat,
            Goodbye: self._on_goodbye,
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

    def tick(self, now: float) -> list[Outgoing]:
        """Time has passed: overdue jobs, silent workers and silent gateways. To be called every second or oftener."""
        for worker in self.workers.silent(now - self.config.worker_timeout_seconds):
            self._lose(worker, f"not heard for {now - worker.seen_at:.1f} s", now)
        self._drop_silent_gateways(now)
        self.experience.typical.refresh(self.experience.cost, self.workers, now)
        self.preemption.review()
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, job_id = heapq.heappop(self._deadlines)
            job = self.jobs.get(job_id)
            if job is not None and job.deadline == deadline:
                self._expire(job, now)
        return self._flush(now)

    def unreachable(self, peer: bytes, now: float) -> list[Outgoing]:
        """A message to `peer` could not be sent: its worker is lost. A gateway has until it counts as silent."""
        for worker in self.workers.at(peer):
            self._lose(worker, "its connection is gone", now)
        return self._flush(now)

    def shut_down(self, now: float) -> list[Outgoing]:
        """Fails every job. The object is of no use afterwards."""
        for job in list(self.jobs.values()):
            self._end(job, failed(UnavailableError("the scheduler is shutting down")), now)
        out, self._out = self._out, []
        return out

    def next_deadline(self) -> float | None:
        """The earliest time at which a job may be overdue; None without jobs. For a driver that jumps in time."""
        return self._deadlines[0][0] if self._deadlines else None

    def status(self, now: float) -> Status:
        states = Counter(job.state for job in self.jobs.values())
        return Status(
            epoch=self.epoch,
            policy=self.policy.name,
            workers=tuple(worker.status(now) for worker in self.workers),
            jobs_by_state={state.value: states[state] for state in JobState if state is not JobState.ENDED},
            jobs_total=dict(self.totals),
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
            self._size_queued()
        except PackhorseError as error:
            log.error("refused %s worker %s: %s", info.role, info.worker_id, error)
            self._send(peer, Rejected(error=ErrorInfo.of(error)))
            return
        self.experience.joined(worker)
        if info.role == "decode":
            self.policy.room = room_of(worker, self.policy.room)
        log.info("%s worker %s registered: %s", info.role, info.worker_id, info.data_address or "no data address")
        heartbeat, timeout = self.config.heartbeat_seconds, self.config.worker_timeout_seconds
        self._send(peer, Registered(epoch=self.epoch, heartbeat_seconds=heartbeat, timeout_seconds=timeout))

    def _size_queued(self) -> None:
        """The first worker after none may bring another layout: jobs that waited meanwhile need other pages."""
        layout = self.workers.layout
        if len(self.workers) == 1 and layout is not None:
            for job in self.jobs.values():
                if job.state is JobState.QUEUED and job.needs_decode:
                    job.pages = job.run_pages = pages_needed(job.job, layout)

    def _on_heartbeat(self, peer: bytes, message: Heartbeat, now: float) -> None:
        worker = self.workers.heard_from(message.worker_id, peer)
        if worker is not None:
            worker.seen_at, worker.load = now, message.load
            self.experience.heard(worker, message.load)
        self._send(peer, HeartbeatAck(epoch=self.epoch, known=worker is not None))

    def _on_goodbye(self, peer: bytes, message: Goodbye, now: float) -> None:
        worker = self.workers.heard_from(message.worker_id, peer)
        if worker is not None:
            self._lose(worker, "it shut down", now)

    def _lose(self, worker: Worker, why: str, now: float) -> None:
        """The worker is gone and holds nothing: fail its jobs, and release them on the other side."""
        jobs = list(worker.jobs.values())
        log.warning("lost %s worker %s with %d jobs: %s", worker.info.role, worker.worker_id, len(jobs), why)
        self.workers.remove(worker.worker_id)
        self.experience.left(worker)
        for job in jobs:
            stage = job.state.value
            job.dropped(worker.worker_id)
            lost = WorkerLostError(
                f"{worker.info.role} worker {worker.worker_id} was lost while the job was {stage}: {why}"
            )
            self._end(job, failed(lost), now)

    # ---- jobs, as the workers tell of them

    def _on_reserved(self, peer: bytes, message: Reserved, now: float) -> None:
        if self.workers.heard_from(message.worker_id, peer) is None:
            return
        job = self.jobs.get(message.job_id)
        if job is None:  # forgotten here after its release deadline, yet held there
            self._send(peer, Release(job_id=message.job_id, reason="unknown job"))
        elif job.reserved(message.worker_id, now):
            self._start_prefill(job, now)

    def _start_prefill(self, job: TrackedJob, now: float) -> None:
        self._watch(job)
        prefill, decode = self.workers.get(job.prefill_worker), self.workers.get(job.decode_worker)
        assert prefill is not None, "a lost worker's jobs have ended"
        start = StartPrefill(
            job=job.job,
            decode_worker=job.decode_worker,
            data_address=decode.info.data_address if decode is not None else None,
            queue_seconds=job.queue_seconds,
        )
        self._send(prefill.peer, start)
        placed = Placed(
            job_id=job.job_id,
            prefill_worker=job.prefill_worker,
            decode_worker=job.decode_worker,
            queue_seconds=job.queue_seconds,
        )
        self._send(job.gateway, placed)

    def _on_prefill_done(self, peer: bytes, message: PrefillDone, now: float) -> None:
        job = self._job_at(peer, message)
        ended = message.finish_reason is not None
        if job is None or not job.prefilled(message.worker_id, ended, message.stats, now):
            return
        job.progress.generated = max(1, job.progress.generated)
        self.experience.prefilled(job, message.stats)
        if ended:
            self._end(job, DONE, now)
        elif not job.decode_worker:
            lacks = PackhorseError(
                f"prefill worker {message.worker_id} left a job of one token without a finish reason"
            )
            self._end(job, failed(lacks), now)
        else:
            self._watch(job)
            self._settle(job)

    def _on_preempted(self, peer: bytes, message: Preempted, now: float) -> None:
        job, worker = self._job_at(peer, message), self.workers.get(message.worker_id)
        if job is not None and worker is not None and worker.worker_id in job.holds:
            self.preemption.is_out(worker, job, message.number)

    def _stop(self, worker: Worker, job: TrackedJob) -> None:
        log.info("job %s is preempted on %s", job.job_id, worker.worker_id)
        self._send(worker.peer, Preempt(job_id=job.job_id, number=job.preemptions))

    def _call_back(self, worker: Worker, job: TrackedJob) -> None:
        log.info("job %s is resumed on %s", job.job_id, worker.worker_id)
        self._send(worker.peer, Resume(job_id=job.job_id))

    def _on_job_done(self, peer: bytes, message: JobDone, now: float) -> None:
        """A prefill worker that still holds the job is about to say PrefillDone, so it is not asked to release it."""
        job = self._job_at(peer, message)
        if job is not None and job.decoded(message.worker_id, message.stats):
            self._end(job, DONE, now, ask=False)

    def _on_worker_failed(self, peer: bytes, message: WorkerFailed, now: float) -> None:
        job = self._job_at(peer, message)
        if job is not None and job.dropped(message.worker_id):
            log.warning("job %s failed at worker %s: %s", job.job_id, message.worker_id, message.error.message)
            self._end(job, failed(message.error.error()), now)

    def _on_released(self, peer: bytes, message: Released, now: float) -> None:
        job = self._job_at(peer, message)
        if job is not None and job.state is JobState.RELEASING and job.dropped(message.worker_id):
            self._settle(job)

    def _job_at(
        self, peer: bytes, message: PrefillDone | JobDone | WorkerFailed | Released | Preempted
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
        tracked = TrackedJob(job, peer, pages, self._limits, now)
        try:
            check_admission(tracked, self.workers, len(self.policy), self.config.max_queue)
        except PackhorseError as error:
            self._refuse(peer, job, error)
            self.totals[failed(error).label] += 1
            return
        self.jobs[job.job_id] = tracked
        self.decisions.queued(tracked, self.experience.forecast(tracked), self.policy.name, self.placement.name)
        self.policy.add(tracked, now)
        self._watch(tracked)

    def _refuse(self, peer: bytes, job: Job, error: PackhorseError) -> None:
        log.info("job %s refused: %s", job.job_id, error)
        self._send(peer, JobFailed(job_id=job.job_id, error=ErrorInfo.of(error)))

    def _on_cancel(self, peer: bytes, message: Cancel, now: float) -> None:
        self._gateways[peer] = now
        job = self.jobs.get(message.job_id)
        if job is not None and job.gateway == peer:
            self._end(job, CANCELLED, now, reason=message.reason)

    def _on_status_request(self, peer: bytes, message: StatusRequest, now: float) -> None:
        self._gateways[peer] = now
        self._send(peer, self.status(now))

    def _on_explain(self, peer: bytes, message: Explain, now: float) -> None:
        self._send(peer, self.decisions.explain(message.job_id))

    def _drop_silent_gateways(self, now: float) -> None:
        oldest = now - 2 * self.config.worker_timeout_seconds
        gone = {peer for peer, heard_at in self._gateways.items() if heard_at < oldest}
        if not gone:
            return
        log.warning("gateways not heard any more: %s", ", ".join(sorted(_name(peer) for peer in gone)))
        for peer in gone:
            del self._gateways[peer]
        for job in [job for job in self.jobs.values() if job.gateway in gone]:
            self._end(job, CANCELLED, now, reason="its gateway is gone")

    # ---- placing and ending

    def _place_heads(self, now: float) -> None:
        while (job := self.policy.head(now)) is not None:
            pair = self.placement.choose(job, self.workers)
            if pair is None:
                if job.needs_decode and self.placement.has_prefill_for(job):
                    self.preemption.make_room(job, now)
                return
            self.policy.remove(job.job_id)
            job.place(pair.prefill.worker_id, pair.decode.worker_id if pair.decode is not None else "", now)
            job.progress.run(now)
            pair.prefill.hold(job)
            self.decisions.placed(job, pair)
            names = (job.prefill_worker, job.decode_worker or "no decode worker")
            log.info("job %s placed on %s and %s after %.3f s in the queue", job.job_id, *names, job.queue_seconds)
            if pair.decode is None:
                self._start_prefill(job, now)
            else:
                pair.decode.hold(job)
                self._watch(job)
                reserve = Reserve(job=job.job, pages=job.pages, prefill_worker=job.prefill_worker)
                self._send(pair.decode.peer, reserve)

    def _startable_head(self, now: float) -> TrackedJob | None:
        """The head of the queue, if it needs a decode worker and some prefill worker would take it."""
        head = self.policy.head(now)
        return head if head is not None and head.needs_decode and self.placement.has_prefill_for(head) else None

    def _expire(self, job: TrackedJob, now: float) -> None:
        """The job has been in its state for too long. Released, it is forgotten: no worker can keep it here for ever."""
        if job.state is not JobState.RELEASING:
            held = f" at {' and '.join(job.holds)}" if job.holds else ""
            limit = self._limits.of(job.state)
            self._end(job, failed(DeadlineError(f"the job was {job.state.value}{held} for more than {limit:g} s")), now)
            return
        for worker_id in list(job.holds):
            log.error("worker %s did not release job %s within %g s", worker_id, job.job_id, self._limits.releasing)
            self._ask_release(job, worker_id, "overdue")
            job.dropped(worker_id)
        self._settle(job)

    def _end(self, job: TrackedJob, outcome: Outcome, now: float, *, reason: str = "", ask: bool = True) -> None:
        """Gives `job` its outcome, if it has none yet; tells the gateway of a failure and the workers to release it."""
        if job.outcome is None:
            self.policy.remove(job.job_id)
            stage, holders = job.state.value, job.end(outcome, now)
            why = reason or (str(outcome.error) if outcome.error is not None else "ended by token 1")
            for worker_id in holders if ask else ():
                self._ask_release(job, worker_id, why)
            self._count(job, outcome, stage, why)
            if job.state is JobState.RELEASING:
                self._watch(job)
            if outcome is DONE:
                self._learn_from(job, now)
        self._settle(job)

    def _learn_from(self, job: TrackedJob, now: float) -> None:
        tokens = job.stats.completion_tokens
        self.decisions.ended(job.job_id, tokens)
        if tokens > 0:
            self.policy.observe(job, tokens, now)
            self.experience.ended(job, tokens)

    def _count(self, job: TrackedJob, outcome: Outcome, stage: str, why: str) -> None:
        self.totals[outcome.label] += 1
        if outcome is not DONE:
            log.info("job %s %s while %s: %s", job.job_id, outcome.label, stage, why)
        if outcome.error is not None:
            self._send(job.gateway, JobFailed(job_id=job.job_id, error=ErrorInfo.of(outcome.error)))

    def _ask_release(self, job: TrackedJob, worker_id: str, reason: str) -> None:
        worker = self.workers.get(worker_id)
        if worker is not None:
            self._send(worker.peer, Release(job_id=job.job_id, reason=reason))

    def _settle(self, job: TrackedJob) -> None:
        """Frees the places of workers that hold nothing of `job` any more; forgets a job that nobody holds."""
        for worker_id in (job.prefill_worker, job.decode_worker):
            worker = self.workers.get(worker_id)
            if worker is not None and worker_id not in job.holds:
                worker.drop(job.job_id)
        if job.decode_worker not in job.holds:
            self.preemption.gone(job.decode_worker, job.job_id)
        if job.state is not JobState.ENDED or self.jobs.pop(job.job_id, None) is None:
            return
        self.policy.forget(job.job_id)
        if job.outcome is DONE:
            log.info(
                "job %s done on %s and %s", job.job_id, job.prefill_worker, job.decode_worker or "no decode worker"
            )
            self._send(job.gateway, JobEnded(job_id=job.job_id, stats=job.final_stats()))

    # ---- out

    def _watch(self, job: TrackedJob) -> None:
        heapq.heappush(self._deadlines, (job.deadline, job.job_id))

    def _send(self, peer: bytes, message: Model) -> None:
        self._out.append((peer, message))

    def _flush(self, now: float) -> list[Outgoing]:
        self.preemption.bring_back(self._startable_head(now), now)
        self._place_heads(now)
        out, self._out = self._out, []
        return out


def _registered(field: str, name: str, registry: Mapping[str, Entry]) -> Entry:
    """Raises ConfigError that names what is allowed."""
    if name not in registry:
        raise ConfigError(f"{field}={name!r}: known are {', '.join(sorted(registry))}", param=field)
    return registry[name]


def _name(peer: bytes) -> str:
    return peer.decode(errors="replace")
