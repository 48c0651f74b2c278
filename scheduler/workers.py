"""The registered workers: what each said of itself, when it was last heard, and what the scheduler has placed on it.

Counts are the scheduler's own, not the workers': a place is taken when a pair is chosen and free again when the job has dropped
it, so capacity is never promised twice. All workers share one KV layout, the first one's, as long as any is registered.
Knows nothing of job states or messages to send.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from packhorse.errors import ConfigError
from scheduler.jobs import TrackedJob
from transport.messages import KVLayout, Role, WorkerInfo, WorkerLoad, WorkerStatus


@dataclass(eq=False)
class Worker:
    """One worker. `prompt_tokens` and `reserved_pages` are sums over `jobs`."""

    info: WorkerInfo
    peer: bytes
    seen_at: float
    load: WorkerLoad = field(default_factory=WorkerLoad)
    jobs: dict[str, TrackedJob] = field(default_factory=dict)
    prompt_tokens: int = 0
    reserved_pages: int = 0

    @property
    def worker_id(self) -> str:
        return self.info.worker_id

    def hold(self, job: TrackedJob) -> None:
        """Takes a place for `job`, on a decode worker its pages too."""
        assert job.job_id not in self.jobs
        self.jobs[job.job_id] = job
        self.prompt_tokens += job.prompt_tokens
        self.reserved_pages += self._pages(job)

    def drop(self, job_id: str) -> None:
        """Frees what `hold` took; a job that is not here changes nothing."""
        job = self.jobs.pop(job_id, None)
        if job is not None:
            self.prompt_tokens -= job.prompt_tokens
            self.reserved_pages -= self._pages(job)

    def has_context_for(self, job: TrackedJob) -> bool:
        """Whether the sequence fits the worker's context; at the prefill worker it is the prompt and token 1."""
        tokens = job.total_tokens if self.info.role == "decode" else job.prompt_tokens + 1
        return tokens <= self.info.max_context_tokens

    def has_room_for(self, job: TrackedJob) -> bool:
        """Whether the job fits now."""
        pages_fit = self.reserved_pages + self._pages(job) <= self.info.capacity_pages or self.info.role == "prefill"
        return len(self.jobs) < self.info.max_jobs and pages_fit and self.has_context_for(job)

    def status(self, now: float) -> WorkerStatus:
        return WorkerStatus(
            info=self.info,
            load=self.load,
            jobs=len(self.jobs),
            reserved_pages=self.reserved_pages,
            heartbeat_age_seconds=max(0.0, now - self.seen_at),
        )

    def _pages(self, job: TrackedJob) -> int:
        return job.pages if self.info.role == "decode" else 0


class Workers:
    """The registry, by worker id; iterates in order of registration."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, worker_id: str) -> Worker | None:
        return self._workers.get(worker_id)

    def heard_from(self, worker_id: str, peer: bytes) -> Worker | None:
        """The worker, if it is registered and `peer` is its connection."""
        worker = self._workers.get(worker_id)
        return worker if worker is not None and worker.peer == peer else None

    def at(self, peer: bytes) -> list[Worker]:
        return [worker for worker in self._workers.values() if worker.peer == peer]

    def of_role(self, role: Role) -> list[Worker]:
        return [worker for worker in self._workers.values() if worker.info.role == role]

    @property
    def layout(self) -> KVLayout | None:
        """What all registered workers share; None while there is none."""
        return next((worker.info.layout for worker in self._workers.values()), None)

    def check(self, info: WorkerInfo) -> None:
        """Raises ConfigError, naming fields and values, when a worker like this cannot be registered beside the others."""
        if info.role == "decode" and not info.data_address:
            raise ConfigError(f"decode worker {info.worker_id} has no data_address")
        if info.max_jobs < 1:
            raise ConfigError(f"worker {info.worker_id}: max_jobs={info.max_jobs} is less than 1")
        if self.layout is not None and info.layout != self.layout:
            raise ConfigError(
                f"worker {info.worker_id} differs from the registered workers: {_differences(info.layout, self.layout)}"
            )

    def add(self, info: WorkerInfo, peer: bytes, now: float) -> Worker:
        """Registers it, with nothing on it. Raises ConfigError as `check`."""
        self.check(info)
        assert info.worker_id not in self._workers
        worker = self._workers[info.worker_id] = Worker(info, peer, now)
        return worker

    def remove(self, worker_id: str) -> None:
        del self._workers[worker_id]

    def silent(self, since: float) -> list[Worker]:
        """Those last heard before `since`."""
        return [worker for worker in self._workers.values() if worker.seen_at < since]


def _differences(theirs: KVLayout, ours: KVLayout) -> str:
    one, two = theirs.model_dump(), ours.model_dump()
    return ", ".join(f"{name}={one[name]!r} instead of {two[name]!r}" for name in one if one[name] != two[name])
