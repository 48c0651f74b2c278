"""Jobs under way, from the queue to the last release: who is placed, what a job's end asks of workers and gateway, what is overdue.

Knows the policy, the placement, the workers' counts and which messages follow from a step of a job; nothing of the messages that
cause the step (scheduler/core.py does), of sockets or of clocks. Jobs move by scheduler.jobs.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from packhorse.config import SchedulerConfig
from packhorse.errors import DeadlineError, OverloadedError
from scheduler.backlog import Backlog
from scheduler.deadlines import Deadlines
from scheduler.decisions import Decisions
from scheduler.eviction import Eviction
from scheduler.experience import Experience
from scheduler.jobs import DONE, JobState, Outcome, StateSeconds, Swap, TrackedJob, failed
from scheduler.overload import Overload
from scheduler.pauses import Pauses
from scheduler.placement import Pair, Placement
from scheduler.policies import Policy
from scheduler.preemption import Preemption
from scheduler.workers import Worker, Workers
from transport.messages import (
    ErrorInfo,
    Explain,
    Explanations,
    JobEnded,
    JobFailed,
    Model,
    Placed,
    Preempt,
    Release,
    Replay,
    Reserve,
    Resume,
    StartPrefill,
)

log = logging.getLogger(__name__)


class Lifecycle:
    """`jobs`: all that are under way. `totals`: those that ended, by outcome. `send` takes (peer, message)."""

    def __init__(
        self,
        config: SchedulerConfig,
        workers: Workers,
        policy: Policy,
        placement: Placement,
        experience: Experience,
        send: Callable[[bytes, Model], None],
    ) -> None:
        self.jobs: dict[str, TrackedJob] = {}
        self.totals: Counter[str] = Counter()
        self.num_preemptions = 0
        self.decisions = Decisions()
        self.preemption = Preemption(policy, workers, experience, self._stop, self._call_back)
        self.pauses = Pauses(policy, self.preemption, self._call_back)
        self.limits = StateSeconds(
            queued=config.queue_seconds,
            reserving=config.reserve_seconds,
            prefilling=config.prefill_seconds,
            decoding=config.decode_seconds,
            releasing=config.release_seconds,
        )
        self._workers, self._policy, self._placement, self._experience = workers, policy, placement, experience
        self._backlog = Backlog(workers, experience.cost, experience.typical)
        self._overload = Overload(config, policy, self._backlog, experience.typical)
        self._send = send
        self._deadlines = Deadlines()

    # ---- forward

    def queue(self, job: TrackedJob, now: float) -> None:
        """Admits the job, and sheds others for it. Raises OverloadedError: it is shed itself."""
        predicted_by = self._experience.forecast(job)
        try:
            shed = self._overload.shed_for(job, now)
        except OverloadedError:
            self._policy.forget(job.job_id)  # it was asked who would go before the job
            raise
        for other, error in shed:
            self.end(other, failed(error), now)
        self.jobs[job.job_id] = job
        self.decisions.queued(job, predicted_by, self._policy.name, self._placement.name)
        self._policy.add(job, now)
        self.watch(job)

    def place_heads(self, now: float) -> None:
        """Places the head of the queue, and the next one, as long as a pair fits; brings preempted jobs back before that."""
        if self.preemption.due:
            self.preemption.bring_back(self._startable_head(now), now)
        self._place_while_there_is_room(now)
        self._backlog.seen(now, waiting=len(self._policy) > 0)

    def _place_while_there_is_room(self, now: float) -> None:
        while (job := self._policy.head(now)) is not None:
            pair = self._placement.choose(job, self._workers, now, len(self._policy))
            if pair is None:
                if self._placement.binds:
                    self._place_bound(now)
                elif job.needs_decode and self._placement.has_prefill_for(job):
                    self.preemption.make_room(job, self._startable(now), now)
                return
            self._place(job, pair, now)

    def _place_bound(self, now: float) -> None:
        """Those behind a head that waits for its own workers, in order of arrival."""
        for job in list(self._policy.queued()):
            pair = self._placement.choose(job, self._workers, now, len(self._policy))
            if pair is not None:
                self._place(job, pair, now)

    def _place(self, job: TrackedJob, pair: Pair, now: float) -> None:
        self._policy.remove(job.job_id)
        self._backlog.placed(job)
        job.place(pair.prefill.worker_id, pair.decode.worker_id if pair.decode is not None else "", now)
        job.progress.run(now)
        pair.prefill.hold(job)
        self.decisions.placed(job, pair, now)
        names = (job.prefill_worker, job.decode_worker or "no decode worker")
        log.info("job %s placed on %s and %s after %.3f s in the queue", job.job_id, *names, job.queue_seconds)
        if pair.decode is None:
            self.start_prefill(job)
        else:
            pair.decode.hold(job)
            self.watch(job)
            reserve = Reserve(job=job.job, pages=job.pages, prefill_worker=job.prefill_worker, replay=job.replay)
            self._send(pair.decode.peer, reserve)

    def _startable(self, now: float) -> Iterator[TrackedJob]:
        """The queue in its order, as far as prefill workers have places; nothing is counted until it is read."""
        places = sum(worker.info.max_jobs - worker.device_jobs for worker in self._workers.of_role("prefill"))
        yield from islice(self._policy.upcoming(now), places)

    def _startable_head(self, now: float) -> TrackedJob | None:
        """The head of the queue, if it needs a decode worker and some prefill worker would take it."""
        head = self._policy.head(now)
        return head if head is not None and head.needs_decode and self._placement.has_prefill_for(head) else None

    def start_prefill(self, job: TrackedJob) -> None:
        """Its workers hold their places: the prefill worker is told, and the gateway."""
        self.watch(job)
        prefill, decode = self._workers.get(job.prefill_worker), self._workers.get(job.decode_worker)
        assert prefill is not None, "a lost worker's jobs have ended"
        start = StartPrefill(
            job=job.job,
            decode_worker=job.decode_worker,
            data_address=decode.info.data_address if decode is not None else None,
            queue_seconds=job.queue_seconds,
            held_pages=job.held_pages,
            first_token=job.replay.tokens[0] if job.replay is not None else None,
        )
        self._send(prefill.peer, start)
        placed = Placed(
            job_id=job.job_id,
            prefill_worker=job.prefill_worker,
            decode_worker=job.decode_worker,
            queue_seconds=job.queue_seconds,
        )
        self._send(job.gateway, placed)

    def decodes(self, job: TrackedJob) -> None:
        """Its prompt has arrived: the prefill worker is done with it. (Or it ends anyway, its decode worker being lost.)"""
        worker = self._workers.get(job.decode_worker)
        if worker is not None:
            worker.arrived(job.job_id)
        self.watch(job)
        self.settle(job)
        self.pauses.decodes(job)

    def explain(self, asked: Explain) -> Explanations:
        """How these jobs were scheduled, with the state of those that are under way."""
        known = self.decisions.named(asked.job_id) if asked.job_id else self.decisions.newest(asked.newest)
        jobs = tuple(told.model_copy(update=self._state_of(told.job_id)) for told in known)
        return Explanations(job_id=asked.job_id, newest=asked.newest, jobs=jobs)

    def _state_of(self, job_id: str) -> dict[str, Any]:
        job = self.jobs.get(job_id)
        if job is None or job.outcome is not None:
            return {}
        return {
            "stage": "paused" if job.paused else job.state.value,
            "preemptions": job.preemptions,
            "generated_tokens": job.progress.generated,
            "current_tokens": job.forecast.given(job.progress.generated) if job.progress.generated else (),
            "refined": self._experience.is_refined(job),
        }

    def watch(self, job: TrackedJob) -> None:
        """The job has a new deadline."""
        self._deadlines.set(job.job_id, job.deadline)

    def _stop(self, worker: Worker, job: TrackedJob, eviction: Eviction) -> None:
        self.num_preemptions += 1
        self.decisions.evicted(job, worker.worker_id, eviction)
        log.info(
            "job %s is preempted on %s, %s", job.job_id, worker.worker_id, "dropped" if eviction.drop else "swapped"
        )
        self._send(worker.peer, Preempt(job_id=job.job_id, number=job.preemptions, drop=eviction.drop))

    def requeue(self, job: TrackedJob, worker: Worker, number: int, replay: Replay, now: float) -> None:
        """The worker says that it has dropped the job, as the job's preemption of that number asked for."""
        if job.swap is not Swap.DROPPING or number != job.preemptions or job.state is not JobState.DECODING:
            return  # one that ends anyway: its release is on its way
        worker.drop(job.job_id)
        self.preemption.gone(worker.worker_id, job.job_id)
        self.pauses.gone(job.job_id)
        job.requeued(worker.worker_id, replay, now)
        self._policy.add(job, now)  # with the deadline that it had

    def _call_back(self, worker: Worker, job: TrackedJob) -> None:
        log.info("job %s is resumed on %s", job.job_id, worker.worker_id)
        self._send(worker.peer, Resume(job_id=job.job_id))

    # ---- ends

    def next_deadline(self) -> float | None:
        """The earliest time at which a job may be overdue; None without jobs."""
        return self._deadlines.first

    def expire(self, now: float) -> None:
        """Ends jobs that have been in their state for too long."""
        for job_id in self._deadlines.overdue(now):
            self._expire(self.jobs[job_id], now)

    def _expire(self, job: TrackedJob, now: float) -> None:
        """The job has been in its state for too long. Released, it is forgotten: no worker can keep it here for ever."""
        if job.state is not JobState.RELEASING:
            self.end(job, failed(DeadlineError(job.overdue)), now)
            return
        for worker_id in list(job.holds):
            log.error("worker %s did not release job %s within %g s", worker_id, job.job_id, self.limits.releasing)
            self._ask_release(job, worker_id, "overdue")
            job.dropped(worker_id)
        self.settle(job)

    def end(self, job: TrackedJob, outcome: Outcome, now: float, *, reason: str = "", ask: bool = True) -> None:
        """Gives `job` its outcome, if it has none yet; tells the gateway of a failure and the workers to release it."""
        if job.outcome is None:
            self._policy.remove(job.job_id)
            stage, holders = job.state.value, job.end(outcome, now)
            why = reason or (str(outcome.error) if outcome.error is not None else "ended by token 1")
            for worker_id in holders if ask else ():
                self._ask_release(job, worker_id, why)
            self._count(job, outcome, stage, why)
            self.decisions.ended(job, now)
            if job.state is JobState.RELEASING:
                self.watch(job)
            if outcome is DONE:
                self._learn_from(job, now)
        self.settle(job)

    def _learn_from(self, job: TrackedJob, now: float) -> None:
        tokens = job.stats.completion_tokens
        if tokens > 0:
            self._policy.observe(job, tokens, now)
            self._placement.observe(tokens)
            self._experience.ended(job, tokens)

    def _count(self, job: TrackedJob, outcome: Outcome, stage: str, why: str) -> None:
        self.totals[outcome.label] += 1
        if outcome is not DONE:
            log.info("job %s %s while %s: %s", job.job_id, outcome.label, stage, why)
        if outcome.error is not None:
            self._send(job.gateway, JobFailed(job_id=job.job_id, error=ErrorInfo.of(outcome.error)))

    def _ask_release(self, job: TrackedJob, worker_id: str, reason: str) -> None:
        worker = self._workers.get(worker_id)
        if worker is not None:
            self._send(worker.peer, Release(job_id=job.job_id, reason=reason))

    def settle(self, job: TrackedJob) -> None:
        """Frees the places of workers that hold nothing of `job` any more; forgets a job that nobody holds."""
        for worker_id in (job.prefill_worker, job.decode_worker):
            worker = self._workers.get(worker_id)
            if worker is not None and worker_id not in job.holds:
                worker.drop(job.job_id)
        if job.decode_worker not in job.holds:
            self.preemption.gone(job.decode_worker, job.job_id)
            self.pauses.gone(job.job_id)
        if job.state is not JobState.ENDED or self.jobs.pop(job.job_id, None) is None:
            return
        self._policy.forget(job.job_id)
        self._deadlines.forget(job.job_id)
        if job.outcome is DONE:
            log.info(
                "job %s done on %s and %s", job.job_id, job.prefill_worker, job.decode_worker or "no decode worker"
            )
            self._send(job.gateway, JobEnded(job_id=job.job_id, stats=job.final_stats()))
