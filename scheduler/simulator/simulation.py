"""One simulation: simulated workers and a gateway around the live SchedulerCore, joined by instant wires, driven by events.

The core, its policy and its placement are the very objects of the live scheduler; the simulation only sends it messages and tells
it the time. Deterministic: the same inputs give the same records. Knows nothing of data sets, command lines or figures.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from packhorse.config import SchedulerConfig, build
from packhorse.errors import ConfigError
from scheduler.core import Outgoing, SchedulerCore
from scheduler.predictor.base import LEARN_BATCH
from scheduler.predictor.guard import Guarded
from scheduler.simulator.cluster import SimCluster
from scheduler.simulator.decode_worker import SimDecodeWorker
from scheduler.simulator.events import EventQueue, Timer
from scheduler.simulator.messages import submit
from scheduler.simulator.prefill_worker import SimPrefillWorker
from scheduler.simulator.prompts import SimPrompt
from scheduler.simulator.records import CANCELLED, DONE, FAILED, WAITING, Records
from scheduler.simulator.worker import SimWorker
from scheduler.simulator.workload import Arrivals, Failure, Workload
from transport.messages import Cancel, JobEnded, JobFailed, Model, StatusRequest

GATEWAY = b"gateway"
DAY_SECONDS = 86_400.0
TICK_SECONDS = 1.0


def patient_config(**fields: Any) -> SchedulerConfig:
    """A scheduler that sheds nothing and counts nobody as silent, so that policies are compared on all requests.

    First come, first served, onto the least loaded pair, unless `fields` say otherwise; a predictor is the simulation's to bring. Raises
    ConfigError for a field that is unknown or wrong.
    """
    never = {"queue_seconds": DAY_SECONDS, "prefill_seconds": DAY_SECONDS, "decode_seconds": DAY_SECONDS}
    open_door = {"max_queue": 1_000_000_000, "shed": False, "worker_timeout_seconds": 1e9}
    plain = {"policy": "fcfs", "placement": "least-loaded", "predictor": "none"}
    return build(SchedulerConfig, {**plain, **never, **open_door, **fields})


class Simulation:
    """`run()` plays everything to its end and returns the records.

    heartbeat_seconds: how often workers and the gateway make themselves heard, and the scheduler learns from what has ended; None:
    never, for a config that waits for ever, as `patient_config`. Where workers fail, the config's worker_timeout_seconds decides when
    the scheduler notices. predictor: forecasts every job and, where it `learns`, hears how those of the run end; None: a job may come
    to its max_tokens. named_devices: workers register with their GPUs' names, so that the scheduler believes from the start what they
    cost, and for known GPUs is exactly right. prefix_cache: decode workers keep the pages of prompts that `share_prefixes`.
    """

    def __init__(
        self,
        cluster: SimCluster,
        workload: Workload,
        arrivals: Arrivals,
        *,
        config: SchedulerConfig | None = None,
        kv_format: str = "raw",
        failures: Sequence[Failure] = (),
        heartbeat_seconds: float | None = None,
        predictor: Guarded | None = None,
        learns: bool = True,
        named_devices: bool = False,
        prefix_cache: bool = True,
    ) -> None:
        cluster = cluster if named_devices else cluster.unnamed()
        self.config = config or patient_config()
        self.core = SchedulerCore(self.config, epoch="simulated")
        self.core.experience.predictor = predictor
        self._learns = learns and predictor is not None
        self.events = EventQueue()
        self.workload, self.arrivals = workload, arrivals
        self.records = Records(workload)
        keeps_prefixes = prefix_cache and workload.share_prefixes
        self.decode = {
            spec.worker_id: SimDecodeWorker(self, spec, cluster.model, kv_format, prefix_cache=keeps_prefixes)
            for spec in cluster.of_role("decode")
        }
        self.prefill = {
            spec.worker_id: SimPrefillWorker(self, spec, cluster.model, kv_format, self.decode)
            for spec in cluster.of_role("prefill")
        }
        self.workers: dict[str, SimWorker] = {**self.prefill, **self.decode}
        if len(arrivals.times) not in (0, len(workload)):
            raise ConfigError(f"{len(arrivals.times)} times of arrival for {len(workload)} requests")
        if failures and heartbeat_seconds is None:
            raise ConfigError("failures are noticed by silence: heartbeat_seconds must be given")
        self._peers = {worker.peer: worker for worker in self.workers.values()}
        self._heartbeat_seconds, self._failures = heartbeat_seconds, failures
        self._dropped_at: dict[int, float] = {}
        self._said: deque[tuple[bytes, Model]] = deque()
        self._next = 0
        self._open = len(workload)
        self._tick = Timer(self.events, self._on_tick)
        self._pause_end = Timer(self.events, self._on_tick)

    def run(self) -> Records:
        """Raises ValueError when requests are left that nothing can end any more."""
        self._begin()
        while self._open or self.core.jobs:
            if not self.events.step():
                raise ValueError(f"nothing happens any more, and {self._open} requests have no outcome")
            self._drain()
        self.check_idle()
        return self.records

    def check_idle(self) -> None:
        """Nothing is left anywhere: no job, no page, no place."""
        assert len(self.core.policy) == 0
        for known in self.core.workers:
            assert not known.jobs, f"the scheduler counts {len(known.jobs)} jobs on {known.worker_id}"
            assert not known.reserved_pages, f"the scheduler counts pages on {known.worker_id}"
        for worker in self.workers.values():
            assert not worker.held, f"{worker.held} jobs are left on {worker.worker_id}"
        for decode in self.decode.values():
            assert not decode.pool.used, f"pages are left on {decode.worker_id}"
            assert not decode.host_pages_used, f"pages are left in the host memory of {decode.worker_id}"

    # ---- what workers see

    def tell(self, peer: bytes, message: Model) -> None:
        """Heard by the core after the event under way."""
        self._said.append((peer, message))

    def output_tokens(self, job_id: str) -> int:
        return self.workload.output_tokens[int(job_id)]

    def first_token(self, job_id: str, prefill_started: float, now: float) -> None:
        index = int(job_id)
        self.records.prefill_started[index] = prefill_started
        self.records.first_token[index] = now

    def shipped(self, num_bytes: int, held_bytes: int) -> None:
        """That much of a prompt's pages and residual goes to its decode worker, which held the other pages."""
        self.records.bytes_shipped += num_bytes
        self.records.bytes_held += held_bytes

    def paused(self, job_id: str, seconds: float) -> None:
        paused = self.records.paused_seconds
        paused[int(job_id)] = max(paused[int(job_id)], seconds)

    def dropped(self, job_id: str, now: float) -> None:
        """The job's pages are given up; it waits in the queue."""
        self._dropped_at[int(job_id)] = now

    def started_anew(self, job_id: str, now: float) -> None:
        """Prefill of a job that was dropped began at `now`."""
        self.paused(job_id, now - self._dropped_at.pop(int(job_id)))

    def last_token(self, job_id: str, now: float) -> None:
        """The client has its last token; the scheduler's word that the job ended comes after it."""
        self._end(int(job_id), DONE, now)

    # ---- requests

    def _begin(self) -> None:
        for worker in self.workers.values():
            worker.come_up(0.0)
        self._drain()
        for failure in self._failures:
            worker = self.workers[failure.worker_id]
            self.events.at(failure.at, worker.vanish)
            if failure.back_at is not None:
                self.events.at(failure.back_at, worker.come_up)
        if self._heartbeat_seconds is not None:
            self.events.at(self._heartbeat_seconds, self._beat)
        for index, time in self.arrivals.cancels.items():
            self.events.at(time, lambda now, index=index: self._cancel(index, now))  # type: ignore[misc]
        if self.arrivals.concurrency:
            for _ in range(min(self.arrivals.concurrency, len(self.workload))):
                self.events.at(0.0, self._submit_next)
        else:
            self.events.at(self.arrivals.times[0], self._arrive)

    def _arrive(self, now: float) -> None:
        self._submit_next(now)
        if self._next < len(self.workload):
            self.events.at(self.arrivals.times[self._next], self._arrive)

    def _submit_next(self, now: float) -> None:
        index, load = self._next, self.workload
        if index == len(load):  # closed loop: several ended at once, near the end
            return
        self._next += 1
        self.records.arrived[index] = now
        ids = load.prompts[index] if len(load.prompts) else range(load.prompt_tokens[index])
        priority = load.priorities[index] if len(load.priorities) else 0
        pause = load.pauses[index] if len(load.pauses) else None
        prompt = SimPrompt(ids, load.output_tokens[index])
        self.tell(GATEWAY, submit(str(index), prompt, load.max_tokens[index], priority, pause))

    def _cancel(self, index: int, now: float) -> None:
        if index < self._next and self.records.status[index] == WAITING:
            self._end(index, CANCELLED, now)
            self.tell(GATEWAY, Cancel(job_id=str(index), reason="the client left"))

    def _end(self, index: int, status: int, now: float, error: str = "") -> None:
        if self.records.status[index] == CANCELLED:  # the client has left; what is said of its job is too late
            return
        self.records.end(index, status, now, error)
        if index in self._dropped_at:
            self.started_anew(str(index), now)
        self._open -= 1
        if self.arrivals.concurrency and self._next < len(self.workload):
            self.events.at(now, self._submit_next)

    def _hear_gateway(self, message: Model, now: float) -> None:
        if isinstance(message, JobFailed):
            self._end(int(message.job_id), FAILED, now, message.error.code)
        elif isinstance(message, JobEnded):
            assert self.records.status[int(message.job_id)] in (DONE, CANCELLED), "a job ended before its last token"

    # ---- wires and time

    def _drain(self) -> None:
        """The core hears what was said, and peers hear what it answers, until all are silent."""
        now = self.events.now
        while self._said:
            peer, message = self._said.popleft()
            self._deliver(self.core.handle(peer, message, now), now)
        if self._heartbeat_seconds is None and self._tick.time is None:
            deadline = self.core.next_deadline()
            self._tick.set(max(deadline, now + TICK_SECONDS) if deadline is not None else None)
        if len(self.workload.pauses):
            self._pause_end.set(self.core.next_pause_end())

    def _deliver(self, outgoing: list[Outgoing], now: float) -> None:
        for peer, message in outgoing:
            worker = self._peers.get(peer)
            if worker is not None:
                worker.hear(message, now)
            else:
                self._hear_gateway(message, now)

    def _on_tick(self, now: float) -> None:
        self._deliver(self.core.tick(now), now)

    def _beat(self, now: float) -> None:
        """Everyone that lives makes itself heard, then the scheduler looks who did not."""
        assert self._heartbeat_seconds is not None
        for worker in self.workers.values():
            worker.beat()
        self.tell(GATEWAY, StatusRequest())
        self._drain()
        self._on_tick(now)
        predictor = self.core.experience.predictor
        if self._learns and predictor is not None and predictor.pending >= LEARN_BATCH:
            self.core.experience.learn(math.inf)
        self.events.at(now + self._heartbeat_seconds, self._beat)
