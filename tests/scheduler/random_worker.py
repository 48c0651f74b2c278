"""A fake worker that holds jobs for real, refuses to hold more than it can, and crashes when it is told to."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any
from zlib import crc32

from packhorse.errors import LinkClosedError
from transport.messages import (
    ErrorInfo,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    JobDone,
    JobStats,
    Model,
    Paused,
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
    WorkerFailed,
    WorkerInfo,
)

if TYPE_CHECKING:
    from tests.scheduler.random_world import World


class FakeWorker:
    """Holds jobs as a worker would, refuses to hold more than it can, and forgets them all when it crashes."""

    def __init__(self, world: World, info: WorkerInfo) -> None:
        self.world, self.info = world, info
        self.peer = info.worker_id.encode()
        self.alive = False
        self.deaf_until = 0.0  # nothing comes through to it, and nothing of what it says; it works on
        self.held: dict[str, int] = {}  # job id -> pages
        self.ready: set[str] = set()  # decode: the page stream has come
        self.paused: set[str] = set()  # decode: of those, who stand still for their tool
        self.out: dict[str, int] = {}  # decode: preempted jobs -> pages
        self.tokens: dict[str, list[int]] = {}  # of each job; a prefill worker has those of a job that was dropped
        self.inbox: deque[Any] = deque()
        self.outbox: deque[Model] = deque()
        self.said: list[Model] = []

    def say(self, message: Model) -> None:
        self.outbox.append(message)
        if not isinstance(message, Register | Heartbeat | Goodbye):
            self.said.append(message)

    @property
    def connected(self) -> bool:
        return self.alive and self.world.now >= self.deaf_until

    def start(self) -> None:
        self.alive, self.deaf_until = True, 0.0
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
                if message.job_id in self.ready:  # else it has ended, and its end is on its way
                    self.give_way(message)
            case Resume():
                self.paused.discard(message.job_id)
                if message.job_id in self.out:
                    self.hold(message.job_id, self.out.pop(message.job_id))
                    self.ready.add(message.job_id)
                    self.world.resumed += 1
                    self.say(Resumed(job_id=message.job_id, worker_id=self.info.worker_id))
            case Release():
                self.let_go(message.job_id)
                self.say(Released(job_id=message.job_id, worker_id=self.info.worker_id))
            case HeartbeatAck() if not message.known:
                self.clear()
                self.say(Register(worker=self.info))
            case Registered():  # the scheduler counts us as empty
                self.clear()
        return None

    def give_way(self, message: Preempt) -> None:
        job_id, worker_id, number = message.job_id, self.info.worker_id, message.number
        if message.drop:
            self.world.dropped += 1
            replay = Replay(tokens=tuple(self.tokens[job_id]), stats=JobStats())
            self.let_go(job_id)
            return self.say(Preempted(job_id=job_id, worker_id=worker_id, number=number, replay=replay))
        self.ready.discard(job_id)
        self.paused.discard(job_id)
        self.out[job_id] = self.held.pop(job_id)
        assert sum(self.out.values()) <= self.info.host_pages
        self.world.preempted += 1
        return self.say(Preempted(job_id=job_id, worker_id=worker_id, number=number))

    def let_go(self, job_id: str) -> None:
        for of_jobs in (self.held, self.out, self.tokens):
            of_jobs.pop(job_id, None)
        self.ready.discard(job_id)
        self.paused.discard(job_id)

    def clear(self) -> None:
        self.held.clear()
        self.ready.clear()
        self.paused.clear()
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
        self.let_go(job_id)
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
        elif job_id in self.ready - self.paused:
            self.generate(job_id, dice.randint(1, 150) if self.world.scarce else 200)

    def generate(self, job_id: str, count: int) -> None:
        """So many tokens of the job, or the rest of them, or those up to its tool pause."""
        tokens, most = self.tokens[job_id], self.world.jobs[job_id].sampling.max_tokens
        for _ in range(min(count, most - len(tokens))):
            tokens.append(next_token(job_id, tokens))
            self.world.emit(job_id, len(tokens) - 1, tokens[-1])
            if self.pauses(job_id):
                return
        if len(tokens) == most:
            self.let_go(job_id)
            stats = JobStats(completion_tokens=most)
            self.say(JobDone(job_id=job_id, worker_id=self.info.worker_id, stats=stats))

    def pauses(self, job_id: str) -> bool:
        """Whether the job has come to its tool pause, and stands still from now on."""
        pause = self.world.jobs[job_id].tool_pause
        if pause is None or len(self.tokens[job_id]) != pause.after_tokens:
            return False
        self.paused.add(job_id)
        self.world.paused += 1
        self.say(Paused(job_id=job_id, worker_id=self.info.worker_id))
        return True

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
            receiver.pauses(job_id)
        self.held.pop(job_id)
        finish = "stop" if ended else None
        done = PrefillDone(job_id=job_id, worker_id=self.info.worker_id, finish_reason=finish, stats=JobStats())
        return self.say(done)


def next_token(job_id: str, tokens: list[int]) -> int:
    return crc32(f"{job_id} {tokens[-1:]} {len(tokens)}".encode()) % 1000
