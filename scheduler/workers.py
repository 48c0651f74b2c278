"""The registered workers: what each said of itself, when it was last heard, and what the scheduler has placed on it.

Counts are the scheduler's own, not the workers': a place is taken when a pair is chosen and free again when the job has dropped
it, so capacity is never promised twice. All workers share one KV layout, the first one's, as long as any is registered.
Knows nothing of job states or messages to send.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from packhorse.errors import ConfigError
from scheduler.jobs import Swap, TrackedJob
from scheduler.prefixes import HeldPrefixes, PrefixHolders
from transport.messages import KVLayout, Role, WorkerInfo, WorkerLoad, WorkerStatus

MOST_HOLDERS = (
    16  # of a prefix that are looked at; one that more workers hold is held by lightly loaded ones too, as a rule
)


def _ignore(_: str) -> None:
    """Nobody watches the worker."""


@dataclass(eq=False)
class Worker:
    """One worker. `prompt_tokens` to `reserved_pages` are sums over `jobs`; `changed` hears of every change of them.

    `room` are the pages that one more job may have: the free ones, or -1 where all places are taken. `inbound` are those of a decode
    worker's jobs whose prompt has not arrived there yet.
    """

    info: WorkerInfo
    peer: bytes
    seen_at: float
    load: WorkerLoad = field(default_factory=WorkerLoad)
    jobs: dict[str, TrackedJob] = field(default_factory=dict)
    inbound: set[str] = field(default_factory=set)
    changed: Callable[[str], None] = _ignore
    prompt_tokens: int = 0
    prompt_squares: int = 0
    context_tokens: int = 0
    reserved_pages: int = 0
    host_pages_used: int = 0
    jobs_out: int = 0
    holders: PrefixHolders = field(default_factory=PrefixHolders, repr=False)  # of the whole registry
    prefixes: HeldPrefixes = field(init=False)
    worker_id: str = field(init=False)
    room: int = field(init=False)

    def __post_init__(self) -> None:
        self.worker_id = self.info.worker_id
        self._count_room()
        self.prefixes = HeldPrefixes(self.worker_id, self.holders)

    @property
    def device_jobs(self) -> int:
        """Jobs that are not out in host memory."""
        return len(self.jobs) - self.jobs_out

    @property
    def free_pages(self) -> int:
        return self.info.capacity_pages - self.reserved_pages

    def hold(self, job: TrackedJob) -> None:
        """Takes a place for `job`, on a decode worker its pages too."""
        assert job.job_id not in self.jobs
        self.jobs[job.job_id] = job
        if self.info.role == "decode":
            self.inbound.add(job.job_id)
        self._count(job, 1)

    def drop(self, job_id: str) -> None:
        """Frees what `hold` took; a job that is not here changes nothing."""
        job = self.jobs.pop(job_id, None)
        self.inbound.discard(job_id)
        if job is not None:
            self._count(job, -1)

    def arrived(self, job_id: str) -> None:
        """The job's prompt is here."""
        self.inbound.discard(job_id)

    def has_context_for(self, job: TrackedJob) -> bool:
        """Whether the sequence fits the worker's context."""
        return job.context_at(self.info.role) <= self.info.max_context_tokens

    def has_room_for(self, job: TrackedJob) -> bool:
        """Whether the job fits now."""
        return self.has_room(*self.needs(job))

    def needs(self, job: TrackedJob) -> tuple[int, int]:
        """(pages, context tokens) of the job on a worker of this role."""
        return job.pages if self.info.role == "decode" else 0, job.context_at(self.info.role)

    def has_room(self, pages: int, context_tokens: int) -> bool:
        """Whether that fits now: for many workers asked for one job."""
        return pages <= self.room and context_tokens <= self.info.max_context_tokens

    def could_have_room(self, pages: int, context_tokens: int) -> bool:
        """Whether that fits the worker when it is empty."""
        return pages <= self.info.capacity_pages and context_tokens <= self.info.max_context_tokens

    def fits_on_device(self, job: TrackedJob) -> bool:
        """Whether its pages and a place in the batch are free."""
        pages, _ = self.needs(job)
        return self.reserved_pages + pages <= self.info.capacity_pages and self.device_jobs < self.info.max_jobs

    def prefix_pages(self, job: TrackedJob) -> int:
        """Leading pages of the job's prompt that the worker, by its last reports, holds: prefill would not send them to it."""
        return self.prefixes.count(job.page_digests(self.info.layout)) if self.prefixes else 0

    def move(self, job: TrackedJob, swap: Swap) -> None:
        """The job's pages, and with them its place in the batch, are where `swap` says from now on."""
        self._count_pages(job, -1)
        job.swap = swap
        self._count_pages(job, 1)
        self.changed(self.worker_id)

    def status(self, now: float) -> WorkerStatus:
        return WorkerStatus(
            info=self.info,
            load=self.load,
            jobs=len(self.jobs),
            reserved_pages=self.reserved_pages,
            heartbeat_age_seconds=max(0.0, now - self.seen_at),
        )

    def _count(self, job: TrackedJob, sign: int) -> None:
        self.prompt_tokens += sign * job.prompt_tokens
        self.prompt_squares += sign * job.prompt_tokens**2
        self.context_tokens += sign * job.context_tokens
        self._count_pages(job, sign)
        self.changed(self.worker_id)

    def _count_pages(self, job: TrackedJob, sign: int) -> None:
        pages = sign * self._pages(job)
        if job.swap is Swap.IN:
            self.reserved_pages += pages
        else:
            self.reserved_pages += pages * job.swap.on_device
            self.host_pages_used += pages * job.swap.on_host
            self.jobs_out += sign * (not job.swap.on_device)
        self._count_room()

    def _count_room(self) -> None:
        self.room = self.free_pages if self.device_jobs < self.info.max_jobs else -1

    def _pages(self, job: TrackedJob) -> int:
        return job.pages if self.info.role == "decode" else 0


class Workers:
    """The registry, by worker id; iterates in order of registration."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._sizes: Counter[tuple[Role, int, int]] = Counter()
        self._sizes_of: dict[Role, list[tuple[int, int]]] = {"prefill": [], "decode": []}
        self._watches: list[set[str]] = []
        self._holders = PrefixHolders()

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

    def sizes(self, role: Role) -> list[tuple[int, int]]:
        """The different (max_context_tokens, capacity_pages) among the workers of a role; empty without any."""
        return self._sizes_of[role]

    def watch(self) -> set[str]:
        """A set that gets the id of every worker that is added, removed or changed; all that are here are in it. The caller empties it."""
        watch = set(self._workers)
        self._watches.append(watch)
        return watch

    def _changed(self, worker_id: str) -> None:
        for watch in self._watches:
            watch.add(worker_id)

    def prefix_holders(self, job: TrackedJob) -> list[Worker]:
        """Who holds the longest prefix of the job's prompt that any worker holds, by id; nobody where that are more than MOST_HOLDERS."""
        layout = self.layout if self._holders else None
        if layout is None:
            return []
        ids = self._holders.longest(job.page_digests(layout))
        return [self._workers[worker_id] for worker_id in sorted(ids)] if len(ids) <= MOST_HOLDERS else []

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
        worker = self._workers[info.worker_id] = Worker(info, peer, now, changed=self._changed, holders=self._holders)
        self._count_size(info, 1)
        self._changed(info.worker_id)
        return worker

    def remove(self, worker_id: str) -> None:
        worker = self._workers.pop(worker_id)
        worker.prefixes.clear()
        self._count_size(worker.info, -1)
        self._changed(worker_id)

    def _count_size(self, info: WorkerInfo, sign: int) -> None:
        self._sizes[info.role, info.max_context_tokens, info.capacity_pages] += sign
        counts = self._sizes.items()
        self._sizes_of[info.role] = [(context, pages) for (of, context, pages), n in counts if of == info.role and n]

    def silent(self, since: float) -> list[Worker]:
        """Those last heard before `since`."""
        return [worker for worker in self._workers.values() if worker.seen_at < since]


def _differences(theirs: KVLayout, ours: KVLayout) -> str:
    one, two = theirs.model_dump(), ours.model_dump()
    return ", ".join(f"{name}={one[name]!r} instead of {two[name]!r}" for name in one if one[name] != two[name])
