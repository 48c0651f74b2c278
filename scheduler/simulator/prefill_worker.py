"""A simulated prefill worker: runs prompts by a PrefillModel, ships their pages while it computes, says so when they have arrived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packhorse.errors import LinkClosedError
from scheduler.pages import num_pages
from scheduler.simulator.cluster import ModelSize, SimWorkerSpec
from scheduler.simulator.decode_worker import SimDecodeWorker
from scheduler.simulator.events import Timer
from scheduler.simulator.link import ship
from scheduler.simulator.prefill_model import PrefillModel, Prompt
from scheduler.simulator.worker import SimWorker, World
from transport.messages import FinishReason, JobStats, Model, PrefillDone, StartPrefill, WorkerLoad


@dataclass(eq=False)
class Started:
    """One job, from StartPrefill to the acknowledgement of its pages."""

    prompt: Prompt
    max_tokens: int
    decode_worker: str
    held_pages: int = 0  # of the prompt's first ones, by the decode worker: they are not sent
    anew: bool = False  # the job was dropped: its client has token 1
    prefill_seconds: float | None = None  # once token 1 is sampled


class SimPrefillWorker(SimWorker):
    def __init__(
        self,
        world: World,
        spec: SimWorkerSpec,
        model: ModelSize,
        kv_format: str,
        decode_workers: Mapping[str, SimDecodeWorker],
    ) -> None:
        super().__init__(world, spec, model, kv_format)
        self.engine = self._engine()
        self.jobs: dict[str, Started] = {}
        self.bytes_shipped = 0
        self._decode_workers = decode_workers
        self._slot_bytes = model.slot_bytes(kv_format)
        self._timer = Timer(world.events, self._step)

    def _engine(self) -> PrefillModel:
        return PrefillModel(self.spec.cost.prefill, self.spec.chunk_tokens)

    @property
    def held(self) -> int:
        return len(self.jobs)

    # ---- the scheduler's messages

    def receive(self, message: Model, now: float) -> None:
        assert isinstance(message, StartPrefill), f"a prefill worker has no use for {type(message).__name__}"
        job = message.job
        assert job.job_id not in self.jobs, f"job {job.job_id} is started twice on {self.worker_id}"
        prompt = Prompt(job.job_id, len(job.prompt), job.priority)
        self.jobs[job.job_id] = Started(
            prompt, job.sampling.max_tokens, message.decode_worker, message.held_pages, message.first_token is not None
        )
        assert len(self.jobs) <= self.info.max_jobs, f"{self.worker_id}: more jobs than it holds"
        self.engine.add(prompt, now)
        self._timer.set(self.engine.busy_until)

    def release(self, job_id: str, now: float) -> None:
        started = self.jobs.pop(job_id, None)
        if started is not None:
            self.engine.drop(started.prompt, now)
            self._timer.set(self.engine.busy_until)
        self.say_released(job_id)

    def clear(self, now: float) -> None:
        self.engine = self._engine()
        self.jobs.clear()
        self._timer.set(None)

    def load(self) -> WorkerLoad:
        leases = sum(started.prefill_seconds is not None for started in self.jobs.values())
        rate = self.port.bytes_per_second if self.bytes_shipped else 0.0
        return WorkerLoad(
            jobs=len(self.jobs), leases=leases, bytes_shipped=self.bytes_shipped, link_bytes_per_second=rate
        )

    # ---- chunks and pages

    def _step(self, now: float) -> None:
        for prompt in self.engine.finish(now):
            self._prefilled(self.jobs[prompt.job_id], now)
        self._timer.set(self.engine.busy_until)

    def _prefilled(self, started: Started, now: float) -> None:
        """Token 1 is sampled."""
        prompt = started.prompt
        assert prompt.started_at is not None
        if started.anew:
            self.world.started_anew(prompt.job_id, prompt.started_at)
        else:
            self.world.first_token(prompt.job_id, prompt.started_at, now)
        tokens = self.world.output_tokens(prompt.job_id)
        started.prefill_seconds = now - prompt.started_at
        if tokens == 1:
            self.world.last_token(prompt.job_id, now)
            self._done(started, "length" if started.max_tokens == 1 else "stop")
        else:
            self._ship(started, now)

    def _ship(self, started: Started, now: float) -> None:
        """The pages that the decode worker does not hold, which become ready once those before them are computed, and the residual."""
        prompt, layers = started.prompt, self.model.layers
        assert prompt.started_at is not None
        target = self._decode_workers[started.decode_worker]
        whole, held = self._payload_bytes(prompt.tokens), started.held_pages * self._slot_bytes
        num_bytes = whole - held
        held_share = started.held_pages * self.info.layout.page_tokens / prompt.tokens
        first_at = prompt.started_at + (now - prompt.started_at) * held_share
        ready_at = first_at + (now - first_at) / layers
        last_bytes = min(whole * prompt.last_chunk_tokens // (prompt.tokens * layers), num_bytes // layers)
        end = ship(self.port, target.port, num_bytes, ready_at, now, last_bytes) + self.spec.cost.transfer[0]
        self.bytes_shipped += num_bytes
        self.world.shipped(num_bytes, held)
        sent = {"bytes_shipped": num_bytes, "bytes_held": held, "ship_seconds": end - now}
        self.world.events.at(end, lambda at: self._shipped(started, sent, at))

    def _payload_bytes(self, tokens: int) -> int:
        """Of a prompt: all its pages, and the residual's tokens."""
        pages = num_pages(tokens, self.info.layout)
        rest = tokens - pages * self.info.layout.page_tokens
        return pages * self._slot_bytes + rest * self.model.token_bytes

    def _shipped(self, started: Started, sent: dict[str, float], now: float) -> None:
        job_id = started.prompt.job_id
        if self.jobs.get(job_id) is not started:  # released, or lost with the worker
            return
        if not self._decode_workers[started.decode_worker].arrived(job_id, now):
            del self.jobs[job_id]
            self.fail(job_id, LinkClosedError(f"decode worker {started.decode_worker} does not take the job's pages"))
            return
        self._done(started, None, raw_bytes=started.prompt.tokens * self.model.token_bytes, **sent)

    def _done(self, started: Started, finish_reason: FinishReason | None, **shipped: float) -> None:
        job_id = started.prompt.job_id
        del self.jobs[job_id]
        stats = JobStats(
            prompt_tokens=started.prompt.tokens,
            completion_tokens=1,
            prefill_worker=self.worker_id,
            decode_worker=started.decode_worker if finish_reason is None else "",
            prefill_seconds=started.prefill_seconds or 0.0,
            **shipped,  # type: ignore[arg-type]
        )
        self.say(PrefillDone(job_id=job_id, worker_id=self.worker_id, finish_reason=finish_reason, stats=stats))
