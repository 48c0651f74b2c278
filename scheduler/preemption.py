"""Preemption on decode workers: which running jobs give way, and when they come back, as the policy plans.

Acts only where the policy preempts. A job is first asked to leave, counts on the device until the worker says that it is out, and counts
there again from the moment it is called back; one whose pages are dropped leaves for the queue (scheduler/eviction.py decides). A
worker has one round of leaving under way at a time. Rounds for the queue are counted against its order: with n of them under way the
first n jobs are seen to, whichever of them gets which room, and the next one is looked at; so no more jobs are stopped than needed.
Knows nothing of messages: `stop` and `call_back` send them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from scheduler.eviction import Eviction, choose_eviction, drop_seconds, swap_seconds
from scheduler.experience import Experience
from scheduler.jobs import JobState, Swap, TrackedJob
from scheduler.policies import Policy, Room, RunPlan
from scheduler.workers import Worker, Workers

EXAMINED = 4  # workers that are looked at for one blocked job, in turn
AHEAD = 64  # jobs of the queue that room is made for at a time, at most
REVIEWED = 32  # workers at a time: planning anew takes about 0.1 ms of each
LOOK_SECONDS = 0.05  # between two looks while the same job is at the head


@dataclass(frozen=True)
class Round:
    """Jobs on their way out of one worker, for that a job of the queue, or one that is out, fits there."""

    for_queue: bool
    leaving: set[str]


class Preemption:
    def __init__(
        self,
        policy: Policy,
        workers: Workers,
        experience: Experience,
        stop: Callable[[Worker, TrackedJob, Eviction], None],
        call_back: Callable[[Worker, TrackedJob], None],
    ) -> None:
        self._policy, self._workers, self._experience = policy, workers, experience
        self._stop, self._call_back = stop, call_back
        self._rounds: dict[str, Round] = {}  # by worker
        self._out: dict[str, set[str]] = {}  # by worker: jobs that are out
        self.due: set[str] = set()  # workers to be looked at again, by `bring_back`
        self._cursor = 0
        self._looked: tuple[str, float] = ("", 0.0)

    def gone(self, worker_id: str, job_id: str) -> None:
        """The job holds nothing on the worker any more."""
        self._has_left(worker_id, job_id)
        out = self._out.get(worker_id)
        if out is not None:
            out.discard(job_id)
            if out:
                self.due.add(worker_id)
            else:
                del self._out[worker_id]

    def is_out(self, worker: Worker, job: TrackedJob, number: int) -> None:
        """The worker says that the job's pages are in host memory, as the job's preemption of that number asked for."""
        if job.swap is Swap.LEAVING and number == job.preemptions:
            self._has_left(worker.worker_id, job.job_id)
            worker.move(job, Swap.OUT)
            self._out.setdefault(worker.worker_id, set()).add(job.job_id)
            self.due.add(worker.worker_id)

    def is_back(self, worker: Worker, job: TrackedJob, now: float) -> None:
        """The worker says that the job runs again."""
        if job.swap is Swap.RETURNING:
            worker.move(job, Swap.IN)
            job.progress.run(now)
            self.due.add(worker.worker_id)

    def _has_left(self, worker_id: str, job_id: str) -> None:
        under_way = self._rounds.get(worker_id)
        if under_way is not None:
            under_way.leaving.discard(job_id)
            if not under_way.leaving:
                del self._rounds[worker_id]

    def review(self) -> None:
        """Time has passed: waiting jobs may have become the better ones. On very many workers some are looked at, in turn."""
        for worker_id in list(islice(self._out, REVIEWED)):
            self._out[worker_id] = self._out.pop(worker_id)  # to the end
            self.due.add(worker_id)

    def vacate(self, worker: Worker, job: TrackedJob) -> None:
        """The job, which stands still for its tool, leaves the device, if host memory has room."""
        fits = worker.host_pages_used + job.pages <= worker.info.host_pages
        if fits and job.state is JobState.DECODING and job.swap is Swap.IN:
            worker.move(job, Swap.LEAVING)
            job.preemptions += 1
            way = Eviction(
                False, swap_seconds(job, worker, self._experience), drop_seconds(job, worker, self._experience)
            )
            self._stop(worker, job, way)

    def make_room(self, head: TrackedJob, upcoming: Iterable[TrackedJob], now: float) -> None:
        """`head` fits no decode worker. Stops jobs for it and for those behind it, each on a worker of its own, as long as the policy would
        rather run them. `upcoming` is the queue in its order, `head` first.
        """
        looked_for, at = self._looked
        if not self._policy.preempts or (looked_for == head.job_id and now - at < LOOK_SECONDS):
            return
        self._looked = (head.job_id, now)
        coming = sum(under_way.for_queue for under_way in self._rounds.values())
        for job in islice((job for job in upcoming if job.needs_decode), coming, AHEAD):
            if not self._make_room_for(job, now):
                return

    def _make_room_for(self, job: TrackedJob, now: float) -> bool:
        askable = [worker for worker in self._workers.of_role("decode") if worker.worker_id not in self._rounds]
        for i in range(min(EXAMINED, len(askable))):
            worker = askable[(self._cursor + i) % len(askable)]
            if worker.has_context_for(job) and self._give_way(worker, job, now):
                return True
        self._cursor += EXAMINED
        return False

    def bring_back(self, head: TrackedJob | None, now: float) -> None:
        """Calls jobs back where the policy would run them, and stops others for them; before `head`, the next of the queue, only
        where they come before it.
        """
        due, self.due = self.due, set()
        for worker_id in sorted(due):
            worker = self._workers.get(worker_id)
            if worker is not None and worker_id in self._out:
                self._bring_back(worker, head, now)

    def _bring_back(self, worker: Worker, head: TrackedJob | None, now: float) -> None:
        jobs = (worker.jobs[job_id] for job_id in sorted(self._out[worker.worker_id]))
        out = {job.job_id: job for job in jobs if job.state is JobState.DECODING and not job.paused}
        plan = self._plan(worker, [*out.values(), *([head] if head is not None else [])], now)
        for job in plan.run:
            if job.job_id not in out:
                continue
            if worker.fits_on_device(job):
                self._out[worker.worker_id].discard(job.job_id)
                worker.move(job, Swap.RETURNING)
                self._call_back(worker, job)
            elif worker.worker_id not in self._rounds:
                self._stop_until(worker, job, plan, now)
        if not self._out[worker.worker_id]:
            del self._out[worker.worker_id]

    def _give_way(self, worker: Worker, head: TrackedJob, now: float) -> bool:
        plan = self._plan(worker, [head], now)
        return head in plan.run and self._stop_until(worker, head, plan, now)

    def _plan(self, worker: Worker, others: Iterable[TrackedJob], now: float) -> RunPlan:
        """Of the jobs that decode on the worker, and others; in the room that jobs on their way leave."""
        running = [job for job in worker.jobs.values() if _is_running(job)]
        coming = worker.device_jobs - len(running)
        room = Room(worker.free_pages + sum(job.pages for job in running), worker.info.max_jobs - coming)
        return self._policy.plan([*running, *others], room, now)

    def _stop_until(self, worker: Worker, job: TrackedJob, plan: RunPlan, now: float) -> bool:
        """Stops running jobs of the plan's waiting ones, the last first, until `job` will fit; nobody where that is not enough."""
        pages, places = job.pages - worker.free_pages, 1 - (worker.info.max_jobs - worker.device_jobs)
        host_pages = worker.info.host_pages - worker.host_pages_used
        victims: list[tuple[TrackedJob, Eviction]] = []
        for victim in reversed(plan.wait):
            if pages <= 0 and places <= 0:
                break
            if not (_is_running(victim) and victim.job_id in worker.jobs):
                continue
            eviction = choose_eviction(victim, worker, host_pages, self._experience)
            if eviction is not None:
                victims.append((victim, eviction))
                pages, places = pages - victim.pages, places - 1
                host_pages -= 0 if eviction.drop else victim.pages
        if not victims or pages > 0 or places > 0:
            return False
        self._rounds[worker.worker_id] = Round(job.state is JobState.QUEUED, {victim.job_id for victim, _ in victims})
        for victim, eviction in victims:
            worker.move(victim, Swap.DROPPING if eviction.drop else Swap.LEAVING)
            victim.preemptions += 1
            victim.progress.wait(now)
            self._stop(worker, victim, eviction)
        return True


def _is_running(job: TrackedJob) -> bool:
    return job.state is JobState.DECODING and job.swap is Swap.IN and not job.paused
