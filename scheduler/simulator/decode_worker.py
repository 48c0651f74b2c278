"""A simulated decode worker: holds reservations, takes page streams in, generates by a DecodeModel, swaps jobs out and in when told.

A job is coming until its pages have arrived, and then runs. Preempted, it is leaving until its pages are in host memory, then out;
resumed, it is returning until they are back. Copies run beside steps; a job stops and starts between two of them. One that is dropped
and comes again generates its first tokens anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from scheduler.pages import num_pages
from scheduler.simulator.cluster import ModelSize, SimWorkerSpec
from scheduler.simulator.decode_model import DecodeModel, Sequence
from scheduler.simulator.events import Timer
from scheduler.simulator.link import Port
from scheduler.simulator.pool import Holding, SimPool
from scheduler.simulator.worker import SimWorker, World
from transport.messages import (
    JobDone,
    JobStats,
    Model,
    Paused,
    Preempt,
    Preempted,
    Replay,
    Reserve,
    Reserved,
    Resume,
    Resumed,
    ToolPause,
    WorkerLoad,
)
from transport.page_digest import PageDigests


class Where(Enum):
    COMING = "coming"
    RUNNING = "running"
    PAUSED = "paused"
    DROPPING = "dropping"
    LEAVING = "leaving"
    OUT = "out"
    RETURNING = "returning"


@dataclass(eq=False)
class Held:
    """One job and its reservation, which lies on the device unless the job is out."""

    job_id: str
    prompt_tokens: int
    pages: int
    holding: Holding
    replay: Replay | None
    where: Where = Where.COMING
    tool_pause: ToolPause | None = None
    waits_since: float = 0.0  # without its own will
    preemption: int = 0  # the number of the newest one
    sequence: Sequence | None = None


class SimDecodeWorker(SimWorker):
    def __init__(
        self, world: World, spec: SimWorkerSpec, model: ModelSize, kv_format: str, *, prefix_cache: bool = False
    ) -> None:
        super().__init__(world, spec, model, kv_format)
        self.jobs: dict[str, Held] = {}
        self.prefix_cache = prefix_cache
        self.most_pages = 0
        self.num_preempted = self.num_dropped = 0
        self._slot_bytes = model.slot_bytes(kv_format)
        self._timer = Timer(world.events, self._change)
        self.clear(0.0)

    @property
    def held(self) -> int:
        return len(self.jobs)

    # ---- the scheduler's messages

    def receive(self, message: Model, now: float) -> None:
        if isinstance(message, Reserve):
            self._reserve(message)
        elif isinstance(message, Preempt):
            self._preempt(message, now)
        elif isinstance(message, Resume):
            self._resume(message.job_id, now)
        else:
            raise AssertionError(f"a decode worker has no use for {type(message).__name__}")

    def _reserve(self, message: Reserve) -> None:
        job = message.job
        job_id = job.job_id
        assert job_id not in self.jobs, f"job {job_id} is reserved twice on {self.worker_id}"
        digests = tuple(PageDigests(job, self.info.layout)) if self.prefix_cache else ()
        holding = self.pool.take(message.pages, digests)
        self.jobs[job_id] = Held(
            job_id, len(job.prompt), message.pages, holding, message.replay, tool_pause=job.tool_pause
        )
        self._taken()
        self.say(Reserved(job_id=job_id, worker_id=self.worker_id, held_pages=holding.shared))

    def release(self, job_id: str, now: float) -> None:
        held = self.jobs.get(job_id)
        if held is not None and held.where is not Where.COMING:
            held.where = Where.RUNNING if held.where is Where.DROPPING else held.where
            self.engine.remove(job_id, now)
            self._timer.set(self.engine.next_change)
            return
        if held is not None:
            self._free(job_id)
        self.say_released(job_id)

    def clear(self, now: float) -> None:
        self.engine = DecodeModel(self.spec.cost.decode)
        self.jobs.clear()
        self.pool = SimPool(self.info.capacity_pages)
        self.host_pages_used = self.num_out = 0
        self._out, self._in = Port(self.spec.host_bytes_per_second), Port(self.spec.host_bytes_per_second)
        self._reported: tuple[float, int, int, int] = (0.0, 0, 0, 0)
        self._timer.set(None)

    def load(self) -> WorkerLoad:
        """With the means of the steps since the one before, of jumps that have ended, and how far each job is.

        Says beforehand which prefix pages are held, as the live worker does.
        """
        if (changes := self.pool.prefixes.report.take(self.worker_id)) is not None:
            self.say(changes)
        engine, now = self.engine, self.world.events.now
        sums = (engine.busy_seconds, engine.step_contexts, engine.step_sequences, engine.steps)
        seconds, contexts, sequences, steps = (new - old for new, old in zip(sums, self._reported, strict=True))
        self._reported = sums
        steps = max(1, steps)
        generated = {
            sequence.job_id: engine.progress(sequence.job_id, now)[0] - self.jobs[sequence.job_id].prompt_tokens
            for sequence in engine
            if sequence.running
        }
        return WorkerLoad(
            jobs=len(self.jobs), pages_used=self.pool.used, pages_cached=self.pool.prefixes.num_idle,
            host_pages_used=self.host_pages_used, residuals_used=len(self.jobs) - self.num_out, generated=generated,
            step_seconds=seconds / steps, step_context_tokens=contexts / steps, step_jobs=sequences / steps,
            tokens_per_second=sequences / seconds if seconds > 0 else 0.0,
        )  # fmt: skip

    # ---- the data plane

    def arrived(self, job_id: str, now: float) -> bool:
        """The job's pages and token 1 are here: it joins the batch. False when its reservation is gone."""
        held = self.jobs.get(job_id)
        if not self.alive or held is None:
            return False
        held.where = Where.RUNNING
        self.pool.share(held.holding)
        remaining, pause = self.world.output_tokens(job_id) - 1, held.tool_pause
        halts_after = pause.after_tokens - 1 if pause is not None and pause.after_tokens <= remaining else None
        held.sequence = Sequence(job_id, held.prompt_tokens + 1, remaining, halts_after or None)
        self.engine.add(held.sequence)
        if halts_after == 0:
            self._pause(held, now)
        else:
            self._start(job_id, now)
        return True

    # ---- swapping: a job on its way takes memory on both sides

    def _preempt(self, message: Preempt, now: float) -> None:
        """A job that neither runs nor pauses is left alone."""
        held = self.jobs.get(message.job_id)
        if held is None or held.where not in (Where.RUNNING, Where.PAUSED):
            return
        held.preemption = message.number
        if message.drop:
            held.where = Where.DROPPING
            self.engine.remove(held.job_id, now)
            self._timer.set(self.engine.next_change)
            return
        held.where = Where.LEAVING
        self.engine.pause(held.job_id, now)
        self._timer.set(self.engine.next_change)
        self.host_pages_used += held.pages
        assert self.host_pages_used <= self.info.host_pages, f"{self.worker_id}: host memory promised twice"

    def _copy_out(self, held: Held, now: float) -> None:
        """The job does not run."""
        num_bytes = self._num_bytes(held, now)
        done_at = self._out.copy(num_bytes, now)
        self.world.events.at(done_at, lambda at: self._is_out(held, num_bytes))

    def _is_out(self, held: Held, num_bytes: int) -> None:
        if self.jobs.get(held.job_id) is not held or held.where is not Where.LEAVING:
            return
        held.where = Where.OUT
        self.pool.free(held.holding)
        self.num_out += 1
        self.num_preempted += 1
        seconds = num_bytes / self._out.bytes_per_second
        self.say(
            Preempted(
                job_id=held.job_id,
                worker_id=self.worker_id,
                number=held.preemption,
                moved_bytes=num_bytes,
                move_seconds=seconds,
            )
        )

    def _dropped(self, held: Held, now: float) -> None:
        assert held.sequence is not None
        earlier = len(held.replay.tokens) if held.replay is not None else 0
        count = max(earlier, held.sequence.context - held.prompt_tokens)
        self.num_dropped += 1
        self.world.dropped(held.job_id, now)
        replay = Replay(tokens=(0,) * count, stats=JobStats(preemptions=1))
        self.say(Preempted(job_id=held.job_id, worker_id=self.worker_id, number=held.preemption, replay=replay))

    def _resume(self, job_id: str, now: float) -> None:
        held = self.jobs.get(job_id)
        if held is not None and held.where is Where.PAUSED:
            held.where = Where.RUNNING
            self._start(job_id, now)
        if held is None or held.where is not Where.OUT:
            return
        held.where = Where.RETURNING
        self.num_out -= 1
        held.holding = self.pool.take(held.pages)
        self._taken()
        self.world.events.at(self._in.copy(self._num_bytes(held, now), now), lambda at: self._is_back(held, at))

    def _is_back(self, held: Held, now: float) -> None:
        if self.jobs.get(held.job_id) is not held:
            return
        held.where = Where.RUNNING
        self.host_pages_used -= held.pages
        self.world.paused(held.job_id, max(0.0, now - held.waits_since))
        self.say(Resumed(job_id=held.job_id, worker_id=self.worker_id))
        self._start(held.job_id, now)

    def _num_bytes(self, held: Held, now: float) -> int:
        """What the job has on the device now: closed pages, and the residual's tokens."""
        tokens, _ = self.engine.progress(held.job_id, now)
        pages = num_pages(tokens, self.info.layout)
        return pages * self._slot_bytes + (tokens - pages * self.info.layout.page_tokens) * self.model.token_bytes

    # ---- steps

    def _start(self, job_id: str, now: float) -> None:
        self.engine.start(job_id, now)
        self._timer.set(self.engine.next_change)

    def _pause(self, held: Held, now: float) -> None:
        """The job has come to its tool pause and does not run; a wait begins only when that is over."""
        assert held.tool_pause is not None
        held.waits_since = now + held.tool_pause.seconds
        if held.where is Where.RUNNING:
            held.where = Where.PAUSED
        self.say(Paused(job_id=held.job_id, worker_id=self.worker_id))

    def _change(self, now: float) -> None:
        finished, left, paused, halted = self.engine.change(now)
        for job_id in finished:
            held = self._free(job_id)
            tokens = self.world.output_tokens(job_id)
            needed = num_pages(held.prompt_tokens + tokens, self.info.layout)
            assert needed <= held.pages, f"job {job_id} outgrew its {held.pages} pages"
            self.world.last_token(job_id, now)
            stats = JobStats(prompt_tokens=held.prompt_tokens, completion_tokens=tokens)
            self.say(JobDone(job_id=job_id, worker_id=self.worker_id, stats=stats))
        for job_id in left:
            held = self._free(job_id)
            if held.where is Where.DROPPING:
                self._dropped(held, now)
            else:
                self.say_released(job_id)
        for job_id in paused:
            held = self.jobs[job_id]
            held.waits_since = max(held.waits_since, now)
            self._copy_out(held, now)
        for job_id in halted:
            self._pause(self.jobs[job_id], now)
        self._timer.set(self.engine.next_change)

    def _taken(self) -> None:
        """A job has pages and a place on the device."""
        self.most_pages = max(self.most_pages, self.pool.used)
        assert len(self.jobs) - self.num_out <= self.info.max_jobs, f"{self.worker_id}: more jobs than it holds"

    def _free(self, job_id: str) -> Held:
        held = self.jobs.pop(job_id)
        if held.where in (Where.LEAVING, Where.OUT, Where.RETURNING):
            self.host_pages_used -= held.pages
        if held.where is Where.OUT:
            self.num_out -= 1
        else:
            self.pool.free(held.holding)
        return held
