"""Thousands of random events against fake workers that hold jobs for real: nothing overfull, nothing lost, nothing left.

Every token of a job depends on the one before, so that those of a job that was stopped, dropped and begun anew tell whether it went on
where it was. Messages to and from a worker keep their order, as on one connection; between workers anything may overtake anything. Workers
fail jobs, ignore reservations, crash, restart and say goodbye; old messages come again; gateways cancel and vanish.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import Any
from zlib import crc32

import pytest

from packhorse.config import SchedulerConfig
from packhorse.errors import LinkClosedError
from scheduler.core import SchedulerCore
from scheduler.jobs import Swap
from scheduler.policies import POLICIES
from tests.scheduler.fakes import decode_info, make_job, prefill_info
from transport.messages import (
    Cancel,
    ErrorInfo,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    JobDone,
    JobEnded,
    JobFailed,
    JobStats,
    Model,
    Placed,
    Preempt,
    Preempted,
    PrefillDone,
    Register,
    Registered,
    Release,
    Released,
    Replay,
    Reserve,
    Reserved,
    Resume,
    Resumed,
    StartPrefill,
    Status,
    StatusRequest,
    Submit,
    WorkerFailed,
    WorkerInfo,
    WorkerLoad,
)


class FakeWorker:
    """Holds jobs as a worker would, refuses to hold more than it can, and forgets them all when it crashes."""

    def __init__(self, world: World, info: WorkerInfo) -> None:
        self.world, self.info = world, info
        self.peer = info.worker_id.encode()
        self.alive = False
        self.held: dict[str, int] = {}  # job id -> pages
        self.ready: set[str] = set()  # decode: the page stream has come
        self.out: dict[str, int] = {}  # decode: preempted jobs -> pages
        self.tokens: dict[str, list[int]] = {}  # of each job; a prefill worker has those of a job that was dropped
        self.inbox: deque[Any] = deque()
        self.outbox: deque[Model] = deque()
        self.said: list[Model] = []

    def say(self, message: Model) -> None:
        self.outbox.append(message)
        if not isinstance(message, Register | Heartbeat | Goodbye):
            self.said.append(message)

    def start(self) -> None:
        self.alive = True
        self.say(Register(worker=self.info))

    def crash(self, goodbye: bool) -> None:
        self.inbox.clear()
        self.clear()
        if goodbye:
            self.say(Goodbye(worker_id=self.info.worker_id))
        else:
            self.outbox.clear()
        self.alive = False

    def hear(self, message: Any) -> None:
        chance = self.world.random.random()
        match message:
            case Reserve():
                if chance < 0.05:
                    return self.fail(message.job.job_id)
                if chance < 0.1:
                    return None  # the reservation is lost on the worker; its deadline must find it
                self.hold(message.job.job_id, message.pages)
                self.tokens[message.job.job_id] = list(message.replay.tokens) if message.replay is not None else []
                self.say(Reserved(job_id=message.job.job_id, worker_id=self.info.worker_id))
            case StartPrefill():
                self.hold(message.job.job_id, 0)
                self.tokens[message.job.job_id] = [] if message.first_token is None else [message.first_token]
            case Preempt():
                if message.job_id in self.ready and message.drop:
                    self.ready.discard(message.job_id)
                    self.held.pop(message.job_id)
                    self.world.dropped += 1
                    replay = Replay(tokens=tuple(self.tokens.pop(message.job_id)), stats=JobStats())
                    self.say(
                        Preempted(
                            job_id=message.job_id, worker_id=self.info.worker_id, number=message.number, replay=replay
                        )
                    )
                elif message.job_id in self.ready:  # else it has ended, and its end is on its way
                    self.ready.discard(message.job_id)
                    self.out[message.job_id] = self.held.pop(message.job_id)
                    assert sum(self.out.values()) <= self.info.host_pages
                    self.world.preempted += 1
                    self.say(Preempted(job_id=message.job_id, worker_id=self.info.worker_id, number=message.number))
            case Resume():
                if message.job_id in self.out:
                    self.hold(message.job_id, self.out.pop(message.job_id))
                    self.ready.add(message.job_id)
                    self.world.resumed += 1
                    self.say(Resumed(job_id=message.job_id, worker_id=self.info.worker_id))
            case Release():
                self.held.pop(message.job_id, None)
                self.out.pop(message.job_id, None)
                self.ready.discard(message.job_id)
                self.tokens.pop(message.job_id, None)
                self.say(Released(job_id=message.job_id, worker_id=self.info.worker_id))
            case HeartbeatAck() if not message.known:
                self.clear()
                self.say(Register(worker=self.info))
            case Registered():  # the scheduler counts us as empty
                self.clear()
        return None

    def clear(self) -> None:
        self.held.clear()
        self.ready.clear()
        self.out.clear()
        self.tokens.clear()

    def hold(self, job_id: str, pages: int) -> None:
        assert job_id not in self.held
        assert job_id not in self.out
        self.held[job_id] = pages
        assert len(self.held) <= self.info.max_jobs
        if self.info.role == "decode":
            assert sum(self.held.values()) <= self.info.capacity_pages

    def fail(self, job_id: str) -> None:
        self.held.pop(job_id, None)
        self.ready.discard(job_id)
        self.tokens.pop(job_id, None)
        error = ErrorInfo.of(LinkClosedError("fake"))
        self.say(WorkerFailed(job_id=job_id, worker_id=self.info.worker_id, error=error))

    def work(self) -> None:
        """One held job makes progress, or fails."""
        dice = self.world.random
        if not self.held or (self.info.role == "decode" and self.world.scarce and dice.random() < 0.7):
            return
        job_id = dice.choice(sorted(self.held))
        if dice.random() < 0.05:
            self.fail(job_id)
        elif self.info.role == "prefill":
            self.finish_prefill(job_id)
        elif job_id in self.ready:
            self.generate(job_id, dice.randint(1, 150) if self.world.scarce else 200)

    def generate(self, job_id: str, count: int) -> None:
        """So many tokens of the job, or the rest of them."""
        tokens, most = self.tokens[job_id], self.world.jobs[job_id].sampling.max_tokens
        for _ in range(min(count, most - len(tokens))):
            tokens.append(next_token(job_id, tokens))
            self.world.emit(job_id, len(tokens) - 1, tokens[-1])
        if len(tokens) == most:
            self.held.pop(job_id)
            self.ready.discard(job_id)
            del self.tokens[job_id]
            stats = JobStats(completion_tokens=most)
            self.say(JobDone(job_id=job_id, worker_id=self.info.worker_id, stats=stats))

    def finish_prefill(self, job_id: str) -> None:
        alone = self.world.jobs[job_id].sampling.max_tokens == 1
        receiver = next((worker for worker in self.world.workers if worker is not self and job_id in worker.held), None)
        if not alone and receiver is None:
            return self.fail(job_id)
        anew = self.tokens.pop(job_id)
        ended = alone or (not anew and self.world.random.random() < 0.2)
        if not anew:
            self.world.emit(job_id, 0, next_token(job_id, []))
        if not ended and receiver is not None:
            receiver.ready.add(job_id)
            if not anew:
                receiver.tokens[job_id] = [next_token(job_id, [])]
            assert receiver.tokens[job_id][0] == next_token(job_id, [])
        self.held.pop(job_id)
        finish = "stop" if ended else None
        done = PrefillDone(job_id=job_id, worker_id=self.info.worker_id, finish_reason=finish, stats=JobStats())
        return self.say(done)


def next_token(job_id: str, tokens: list[int]) -> int:
    return crc32(f"{job_id} {tokens[-1:]} {len(tokens)}".encode()) % 1000


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
        self.preempted = self.resumed = self.dropped = 0
        self.emitted: dict[str, list[int]] = {}
        config = SchedulerConfig(
            max_queue=30, queue_seconds=60, prefill_seconds=40, decode_seconds=80, release_seconds=20,
            policy=policy, placement=placement, predictor="none",
        )  # fmt: skip
        self.core = SchedulerCore(config, epoch="epoch-1")
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
            assert isinstance(message, Placed | Status)

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
            ]
        weights, calls = zip(*actions, strict=True)
        self.random.choices(calls, weights)[0]()

    def flow(self, worker: FakeWorker) -> None:
        """One message moves each way."""
        if worker.outbox:
            self.hear(worker.peer, worker.outbox.popleft())
        if worker.alive and worker.inbox:
            worker.hear(worker.inbox.popleft())

    def pass_time(self) -> None:
        self.now += self.random.choice([0.1, 0.3, 1.0])
        for worker in self.workers:
            if worker.alive:
                generated = {job_id: len(worker.tokens[job_id]) for job_id in worker.ready}
                worker.say(Heartbeat(worker_id=worker.info.worker_id, load=WorkerLoad(generated=generated)))
                while worker.outbox:
                    self.hear(worker.peer, worker.outbox.popleft())
        for gateway, alive in self.gateways.items():
            if alive:
                self.hear(gateway, StatusRequest())
        self.deliver(self.core.tick(self.now))
        self.check()

    def submit(self) -> None:
        gateways = [gateway for gateway, alive in self.gateways.items() if alive]
        if not gateways:
            return
        job_id = f"{len(self.jobs):06d}"
        prompt, most = self.random.choice([3, 50, 200, 500]), self.random.choice([1, 2, 30, 200])
        job = make_job(job_id, prompt_tokens=prompt, max_tokens=most)
        job = job.model_copy(update={"max_ttft_seconds": self.random.choice([None, None, 3.0, 30.0])})
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
        if worker.alive and len(worker.said) > len(worker.outbox):
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
            if not worker.alive:
                worker.start()
        for _ in range(20_000):
            self.step(closing=True)
            if not self.core.jobs and not any(w.inbox or w.held or w.out for w in self.workers):
                return


@pytest.mark.parametrize("seed", range(12))
def test_random_events(seed: int) -> None:
    world = played(World(seed))
    assert world.preempted == world.dropped == 0
    assert world.placed == sorted(world.placed), "a job overtook another"


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"fcfs"}))
@pytest.mark.parametrize("seed", [1, 2])
def test_random_events_with_preemption(seed: int, policy: str) -> None:
    world = played(World(seed, policy, host_pages=20, placement="predicted"))
    assert (world.preempted > 0) == (world.resumed > 0) == POLICIES[policy].preempts


@pytest.mark.parametrize("policy", sorted(name for name, policy in POLICIES.items() if policy.preempts))
@pytest.mark.parametrize(("seed", "host_pages"), [(1, 0), (3, 5)])
def test_random_events_with_dropping(seed: int, host_pages: int, policy: str) -> None:
    world = played(World(seed, policy, host_pages=host_pages, scarce=True))
    assert world.dropped > 0
    assert (world.preempted > 0) <= (host_pages > 0)


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
    for job_id in world.jobs:
        assert world.terminal[job_id] == 1 or job_id in world.cancelled, f"job {job_id} never ended"
    assert sum(world.core.totals.values()) == len(world.jobs)
    assert world.core.totals["done"] > 20
    return world
