"""A simulated decode worker: holds reservations, takes page streams in, generates by a DecodeModel.

Today every job whose pages have arrived runs until it ends, within the pages that were reserved for its whole life, as on the live
worker; `run_set` is where a plan of the policy decides instead.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from scheduler.pages import num_pages
from scheduler.simulator.cluster import ModelSize, SimWorkerSpec
from scheduler.simulator.decode_model import DecodeModel, Sequence
from scheduler.simulator.events import Timer
from scheduler.simulator.messages import job_done, reserved
from scheduler.simulator.worker import SimWorker, World
from transport.messages import JobStats, Model, Reserve, WorkerLoad


@dataclass(eq=False)
class Held:
    """One job: its reservation, and whether its pages have arrived."""

    prompt_tokens: int
    pages: int
    arrived: bool = False
    released: bool = False


class SimDecodeWorker(SimWorker):
    def __init__(self, world: World, spec: SimWorkerSpec, model: ModelSize, kv_format: str) -> None:
        super().__init__(world, spec, model, kv_format)
        self.engine = DecodeModel(spec.cost.decode)
        self.jobs: dict[str, Held] = {}
        self.reserved_pages = 0
        self.most_pages = 0
        self._reported: tuple[float, int, int, int] = (0.0, 0, 0, 0)
        self._timer = Timer(world.events, self._change)

    @property
    def held(self) -> int:
        return len(self.jobs)

    # ---- the scheduler's messages

    def receive(self, message: Model, now: float) -> None:
        assert isinstance(message, Reserve), f"a decode worker has no use for {type(message).__name__}"
        job_id = message.job.job_id
        assert job_id not in self.jobs, f"job {job_id} is reserved twice on {self.worker_id}"
        self.jobs[job_id] = Held(len(message.job.prompt), message.pages)
        self.reserved_pages += message.pages
        self.most_pages = max(self.most_pages, self.reserved_pages)
        assert self.reserved_pages <= self.info.capacity_pages, f"{self.worker_id}: pages promised twice"
        assert len(self.jobs) <= self.info.max_jobs, f"{self.worker_id}: more jobs than it holds"
        self.say(reserved(job_id, self.worker_id))

    def release(self, job_id: str, now: float) -> None:
        held = self.jobs.get(job_id)
        if held is not None and held.arrived:
            held.released = True
            self.engine.remove(job_id, now)
            self._timer.set(self.engine.next_change)
            return
        if held is not None:
            self._free(job_id)
        self.say_released(job_id)

    def clear(self, now: float) -> None:
        self.engine = DecodeModel(self.spec.cost.decode)
        self.jobs.clear()
        self.reserved_pages = 0
        self._reported = (0.0, 0, 0, 0)
        self._timer.set(None)

    def load(self) -> WorkerLoad:
        """With the means of the steps since the one before, of jumps that have ended, and how far each job is."""
        engine, now = self.engine, self.world.events.now
        sums = (engine.busy_seconds, engine.step_contexts, engine.step_sequences, engine.steps)
        seconds, contexts, sequences, steps = (new - old for new, old in zip(sums, self._reported, strict=True))
        self._reported = sums
        steps = max(1, steps)
        generated = {
            sequence.job_id: engine.progress(sequence.job_id, now)[0] - self.jobs[sequence.job_id].prompt_tokens
            for sequence in engine
        }
        return WorkerLoad.model_construct(
            jobs=len(self.jobs), pages_used=self.reserved_pages, residuals_used=len(self.jobs), generated=generated,
            step_seconds=seconds / steps, step_context_tokens=contexts / steps, step_jobs=sequences / steps,
            tokens_per_second=sequences / seconds if seconds > 0 else 0.0,
        )  # fmt: skip

    # ---- the data plane

    def arrived(self, job_id: str, now: float) -> bool:
        """The job's pages and token 1 are here: it joins the batch. False when its reservation is gone."""
        held = self.jobs.get(job_id)
        if not self.alive or held is None:
            return False
        held.arrived = True
        remaining = self.world.output_tokens(job_id) - 1
        self.engine.add(Sequence(job_id, held.prompt_tokens + 1, remaining))
        self.engine.start(job_id, now)
        self._timer.set(self.engine.next_change)
        return True

    def run_set(self, job_ids: Collection[str], now: float) -> None:
        """From the end of the step under way exactly these of its jobs run."""
        self.engine.run_set(job_ids, now)
        self._timer.set(self.engine.next_change)

    # ---- steps

    def _change(self, now: float) -> None:
        finished, left = self.engine.change(now)
        for job_id in finished:
            held = self._free(job_id)
            tokens = self.world.output_tokens(job_id)
            assert num_pages(held.prompt_tokens + tokens, self.info.layout) <= held.pages, (
                f"job {job_id} outgrew its pages"
            )
            self.world.last_token(job_id, now)
            if held.released:
                self.say_released(job_id)
            else:
                stats = JobStats.model_construct(prompt_tokens=held.prompt_tokens, completion_tokens=tokens)
                self.say(job_done(job_id, self.worker_id, stats))
        for job_id in left:
            self._free(job_id)
            self.say_released(job_id)
        self._timer.set(self.engine.next_change)

    def _free(self, job_id: str) -> Held:
        held = self.jobs.pop(job_id)
        self.reserved_pages -= held.pages
        return held
