"""What simulated workers have in common: they register, speak the real messages, hold jobs, fall silent and come back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from packhorse.errors import PackhorseError
from scheduler.simulator.cluster import ModelSize, SimWorkerSpec
from scheduler.simulator.events import EventQueue
from scheduler.simulator.link import Port
from transport.messages import (
    ErrorInfo,
    Heartbeat,
    HeartbeatAck,
    Model,
    Register,
    Registered,
    Rejected,
    Release,
    Released,
    WorkerFailed,
    WorkerInfo,
    WorkerLoad,
)


class World(Protocol):
    """What a worker sees of the simulation. `index_of` a job id is its request's."""

    events: EventQueue

    def tell(self, peer: bytes, message: Model) -> None: ...

    def output_tokens(self, job_id: str) -> int: ...

    def first_token(self, job_id: str, prefill_started: float, now: float) -> None: ...

    def shipped(self, num_bytes: int, held_bytes: int) -> None: ...

    def paused(self, job_id: str, seconds: float) -> None: ...

    def dropped(self, job_id: str, now: float) -> None: ...

    def started_anew(self, job_id: str, now: float) -> None: ...

    def last_token(self, job_id: str, now: float) -> None: ...


class SimWorker(ABC):
    def __init__(self, world: World, spec: SimWorkerSpec, model: ModelSize, kv_format: str) -> None:
        self.world, self.spec, self.model = world, spec, model
        self.worker_id, self.peer = spec.worker_id, spec.worker_id.encode()
        self.alive = False
        self.port = Port(spec.network_bytes_per_second)
        self.info = WorkerInfo(
            worker_id=spec.worker_id,
            role=spec.role,
            layout=model.layout(kv_format),
            max_context_tokens=model.max_context_tokens,
            max_jobs=spec.max_jobs,
            data_address=f"inproc://{spec.worker_id}" if spec.role == "decode" else None,
            capacity_pages=spec.capacity_pages(model, kv_format),
            host_pages=spec.host_pages(model, kv_format),
            link="inproc",
            backend="simulated",
            device=spec.device,
            sizes=model.sizes,
            nic_gbps=spec.nic_gbps,
        )

    def come_up(self, now: float) -> None:
        """Registers, empty."""
        self.alive = True
        self.port = Port(self.spec.network_bytes_per_second)  # what was to come through it was lost
        self.clear(now)
        self.say(Register(worker=self.info))

    def vanish(self, now: float) -> None:
        """Falls silent at once; what it holds is gone."""
        self.alive = False
        self.clear(now)

    def hear(self, message: Model, now: float) -> None:
        """A message from the scheduler; one that a dead worker cannot hear is lost."""
        if not self.alive:
            return
        if isinstance(message, Release):
            self.release(message.job_id, now)
        elif isinstance(message, HeartbeatAck):
            if not message.known:
                self.come_up(now)
        elif isinstance(message, Rejected):
            raise ValueError(f"the scheduler refused worker {self.worker_id}: {message.error.message}")
        elif not isinstance(message, Registered):
            self.receive(message, now)

    def beat(self) -> None:
        if self.alive:
            self.say(Heartbeat(worker_id=self.worker_id, load=self.load()))

    def say(self, message: Model) -> None:
        self.world.tell(self.peer, message)

    def say_released(self, job_id: str) -> None:
        self.say(Released(job_id=job_id, worker_id=self.worker_id))

    def fail(self, job_id: str, error: PackhorseError) -> None:
        self.say(WorkerFailed(job_id=job_id, worker_id=self.worker_id, error=ErrorInfo.of(error)))

    @abstractmethod
    def receive(self, message: Model, now: float) -> None:
        """A message of the role."""

    @abstractmethod
    def release(self, job_id: str, now: float) -> None:
        """Drops the job, known or not, and says so once nothing works on it any more."""

    @abstractmethod
    def clear(self, now: float) -> None:
        """Holds nothing from now on, and says nothing of it."""

    @abstractmethod
    def load(self) -> WorkerLoad: ...

    @property
    @abstractmethod
    def held(self) -> int:
        """Jobs that it holds in any state."""
