"""A world of random events around a core: fake workers that hold jobs for real, gateways that come and go.

Every token of a job depends on the one before, so that those of a job that was stopped, dropped and begun anew tell whether it went on
where it was. Messages to and from a worker keep their order, as on one connection; between workers anything may overtake anything. Workers
fail jobs, ignore reservations, crash, restart, say goodbye and are cut off for a while; jobs pause for their tools; old messages come
again; gateways cancel and vanish; the scheduler dies and another begins with nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from packhorse.config import SchedulerConfig
from scheduler.core import SchedulerCore
from scheduler.jobs import Swap
from tests.scheduler.fakes import decode_info, make_job, prefill_info
from tests.scheduler.random_worker import FakeWorker, next_token
from transport.messages import (
    Cancel,
    Explain,
    Explanations,
    Heartbeat,
    JobEnded,
    JobFailed,
    JobStats,
    Model,
    Placed,
    Reserve,
    Status,
    StatusRequest,
    Submit,
    ToolPause,
    WorkerLoad,
)


class World:
    def __init__(
        self,
        seed: int,
        policy: str = "fcfs",
        host_pages: int = 0,
        placement: str = "least-loaded",
        scarce: bool = False,
    ) -> None:
        """`scarce`: jobs give way, so decoding is to be what there is too little of."""
        self.random, self.scarce = random.Random(seed), scarce or host_pages > 0
        self.now = 0.0
        self.preempted = self.resumed = self.dropped = self.paused = self.restarts = 0
        self.emitted: dict[str, list[int]] = {}
        self.config = SchedulerConfig(
            max_queue=30, queue_seconds=60, prefill_seconds=40, decode_seconds=80, release_seconds=20,
            policy=policy, placement=placement, predictor="none",
        )  # fmt: skip
        self.core = SchedulerCore(self.config, epoch="epoch-1")
        self.totals: Counter[str] = Counter()  # of earlier schedulers
        self.workers = [
            *(
                FakeWorker(self, prefill_info(f"p{i}", max_jobs=8 if self.scarce else i + 1, max_context_tokens=600))
                for i in range(2)
            ),
            *(
                FakeWorker(self, decode_info(f"d{i}", max_jobs=3, capacity_pages=6 + 6 * i, host_pages=host_pages))
                for i in range(3)
            ),
        ]
        self.gateways = {b"g0": True, b"g1": True}
        self.jobs: dict[str, Any] = {}
        self.owner: dict[str, bytes] = {}
        self.cancelled: set[str] = set()
        self.terminal: Counter[str] = Counter()
        self.placed: list[int] = []
        for worker in self.workers:
            worker.start()

    # ---- wires

    def deliver(self, out: list[tuple[bytes, Model]]) -> None:
        for peer, message in out:
            worker = next((worker for worker in self.workers if worker.peer == peer), None)
            if worker is None:
                self.tell_gateway(peer, message)
            elif worker.alive:
                worker.inbox.append(message)
            job = getattr(message, "job", None)
            if job is not None and (isinstance(message, Reserve) or job.sampling.max_tokens == 1):
                self.placed.append(int(job.job_id))

    def tell_gateway(self, peer: bytes, message: Model) -> None:
        if isinstance(message, JobEnded | JobFailed):
            assert self.owner[message.job_id] == peer
            self.terminal[message.job_id] += 1
            assert self.terminal[message.job_id] == 1, f"job {message.job_id} ended twice"
            if isinstance(message, JobEnded):
                self.check_tokens(message.job_id, message.stats)
        else:
            assert isinstance(message, Placed | Status | Explanations)

    def emit(self, job_id: str, index: int, token: int) -> None:
        """Each token comes once, and in order."""
        tokens = self.emitted.setdefault(job_id, [])
        assert len(tokens) == index
        tokens.append(token)

    def check_tokens(self, job_id: str, stats: JobStats) -> None:
        """They are those of a job that nothing ever happened to."""
        expected: list[int] = []
        for _ in range(max(1, stats.completion_tokens)):
            expected.append(next_token(job_id, expected))
        assert self.emitted[job_id] == expected

    def hear(self, peer: bytes, message: Model) -> None:
        self.deliver(self.core.handle(peer, message, self.now))
        self.check()

    # ---- events

    def step(self, *, closing: bool = False) -> None:
        worker = self.random.choice(self.workers)
        actions: list[tuple[float, Any]] = [
            (30, lambda: self.flow(worker)),
            (10, worker.work if worker.alive else lambda: None),
            (4, self.pass_time),
        ]
        if not closing:
            actions += [
                (5, self.submit),
                (1, self.cancel),
                (1, lambda: self.replay(worker)),
                (0.15, lambda: self.disturb(worker)),
                (0.05, self.toggle_gateway),
                (0.05, lambda: self.cut_off(worker)),
                (0.03, self.restart),
            ]
        weights, calls = zip(*actions, strict=True)
        self.random.choices(calls, weights)[0]()

    def flow(self, worker: FakeWorker) -> None:
        """One message moves each way."""
        if worker.alive and not worker.connected:
            return
        if worker.outbox:
            self.hear(worker.peer, worker.outbox.popleft())
        if worker.alive and worker.inbox:
            worker.hear(worker.inbox.popleft())

    def pass_time(self) -> None:
        self.now += self.random.choice([0.1, 0.3, 1.0])
        for worker in self.workers:
            if worker.connected:
                generated = {job_id: len(worker.tokens[job_id]) for job_id in worker.ready}
                worker.say(Heartbeat(worker_id=worker.info.worker_id, load=WorkerLoad(generated=generated)))
                while worker.outbox:
                    self.hear(worker.peer, worker.outbox.popleft())
        for gateway, alive in self.gateways.items():
            if alive:
                self.hear(gateway, StatusRequest())
                self.hear(gateway, Explain(newest=3))
        self.deliver(self.core.tick(self.now))
        self.check()

    def submit(self) -> None:
        gateways = [gateway for gateway, alive in self.gateways.items() if alive]
        if not gateways:
            return
        job_id = f"{len(self.jobs):06d}"
        prompt, most = self.random.choice([3, 50, 200, 500]), self.random.choice([1, 2, 30, 200])
        job = make_job(job_id, prompt_tokens=prompt, max_tokens=most)
        pause = ToolPause(after_tokens=self.random.choice([1, 5, 25]), seconds=self.random.choice([0.5, 4.0, 20.0]))
        wishes = {
            "max_ttft_seconds": self.random.choice([None, None, 3.0, 30.0]),
            "priority": self.random.choice([0, 0, 0, 1]),
            "tool_pause": pause if self.random.random() < 0.3 and most > pause.after_tokens else None,
        }
        job = job.model_copy(update=wishes)
        self.jobs[job_id], self.owner[job_id] = job, self.random.choice(gateways)
        self.hear(self.owner[job_id], Submit(job=job))

    def cancel(self) -> None:
        if self.jobs:
            job_id = self.random.choice(sorted(self.jobs)[-20:])
            if self.terminal[job_id] == 0:
                self.cancelled.add(job_id)
            self.hear(self.owner[job_id], Cancel(job_id=job_id, reason="random"))

    def replay(self, worker: FakeWorker) -> None:
        """Something it said before, and that has arrived, comes again; not of a job that has begun anew since: connections keep order."""
        if worker.connected and len(worker.said) > len(worker.outbox):
            old = self.random.choice(worker.said[: len(worker.said) - len(worker.outbox)][-15:])
            job = self.core.jobs.get(getattr(old, "job_id", ""))
            if job is None or job.replay is None:
                self.hear(worker.peer, old)

    def disturb(self, worker: FakeWorker) -> None:
        if worker.alive:
            worker.crash(goodbye=self.random.random() < 0.4)
            if self.random.random() < 0.5:
                worker.start()
        else:
            worker.start()

    def cut_off(self, worker: FakeWorker) -> None:
        """Long enough to count as lost, or not."""
        worker.deaf_until = self.now + self.random.choice([1.0, 3.0, 8.0])

    def restart(self) -> None:
        """Gateways fail what they had under way; workers find out by themselves, at once or by the answer to a heartbeat."""
        self.restarts += 1
        self.totals += self.core.totals
        self.totals["lost"] += sum(job.outcome is None for job in self.core.jobs.values())
        self.cancelled |= {job_id for job_id in self.jobs if self.terminal[job_id] == 0}
        self.core = SchedulerCore(self.config, epoch=f"epoch-{self.restarts + 1}")
        for worker in self.workers:
            worker.inbox.clear()
            if worker.alive and self.random.random() < 0.5:
                worker.outbox.clear()
                worker.clear()
                worker.start()

    def toggle_gateway(self) -> None:
        gateway = self.random.choice(sorted(self.gateways))
        self.gateways[gateway] = not self.gateways[gateway]
        if not self.gateways[gateway]:
            self.cancelled |= {job_id for job_id, owner in self.owner.items() if owner == gateway}

    # ---- what must hold

    def check(self) -> None:
        for worker in self.core.workers:
            jobs = worker.jobs.values()
            assert worker.jobs_out == sum(job.swap is Swap.OUT for job in jobs)
            assert worker.device_jobs <= worker.info.max_jobs
            assert worker.room == (worker.free_pages if worker.device_jobs < worker.info.max_jobs else -1)
            assert worker.prompt_tokens == sum(job.prompt_tokens for job in jobs)
            assert worker.prompt_squares == sum(job.prompt_tokens**2 for job in jobs)
            assert worker.context_tokens == sum(job.context_tokens for job in jobs)
            assert worker.inbound <= set(worker.jobs)
            if worker.info.role == "decode":
                there = sum(job.pages for job in jobs if job.swap is not Swap.OUT)
                host = sum(job.pages for job in jobs if job.swap in (Swap.LEAVING, Swap.OUT, Swap.RETURNING))
                assert worker.host_pages_used == host <= worker.info.host_pages
                assert worker.reserved_pages == there <= worker.info.capacity_pages
            for job in jobs:
                assert self.core.jobs[job.job_id] is job
                assert worker.worker_id in job.holds
        for job in self.core.jobs.values():
            held_at = {worker.worker_id for worker in self.core.workers if job.job_id in worker.jobs}
            assert held_at == set(job.holds), "a hold is on both books or on none"
            assert job.deadline >= self.now - 2, "nothing is overdue"

    def close(self) -> None:
        """No more arrivals or faults: everything must come to its end by itself."""
        for gateway in self.gateways:
            self.gateways[gateway] = True
        for worker in self.workers:
            worker.deaf_until = 0.0
            if not worker.alive:
                worker.start()
        for _ in range(20_000):
            self.step(closing=True)
            if not self.core.jobs and not any(w.inbox or w.held or w.out for w in self.workers):
                return


def played(world: World) -> World:
    """Ends with nothing left anywhere."""
    for _ in range(3000):
        world.step()
    world.close()
    assert world.core.jobs == {}
    assert len(world.core.policy) == 0
    assert [worker.held for worker in world.workers if worker.held or worker.out] == []
    for worker in world.core.workers:
        assert (len(worker.jobs), worker.reserved_pages, worker.prompt_tokens) == (0, 0, 0)
        assert (worker.jobs_out, worker.host_pages_used) == (0, 0)
    assert vars(world.core.preemption)["_out"] == {}
    assert vars(world.core.preemption)["_rounds"] == {}
    assert (world.core.next_deadline(), world.core.next_pause_end()) == (None, None)
    for of_jobs in ("_expected", "_uses", "_places", "_initial", "_promoted"):
        assert not vars(world.core.policy).get(of_jobs), of_jobs
    for job_id in world.jobs:
        assert world.terminal[job_id] == 1 or job_id in world.cancelled, f"job {job_id} never ended"
    world.totals += world.core.totals
    assert sum(world.totals.values()) == len(world.jobs)
    assert world.totals["done"] > 20
    return world
