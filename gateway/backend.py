"""The gateway's side of the job plane: jobs go to the scheduler, their tokens come back in order of their index.

Token 1 comes from the prefill worker and the others from the decode worker over another socket, so outputs are put in order
here. A job is over for its request when the output with a finish reason has been delivered, or with an error. A scheduler that
is silent, disconnected or has a new epoch fails every open job: it may have forgotten them. This file knows nothing of HTTP or text.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from gateway.questions import Questions
from packhorse.errors import ConfigError, LinkClosedError, PackhorseError, TransportError, UnavailableError
from transport.messages import (
    Cancel,
    Explain,
    Explanations,
    Job,
    JobEnded,
    JobFailed,
    JobStats,
    Model,
    Placed,
    Status,
    StatusRequest,
    Submit,
    TokenOutput,
    Tokens,
)

log = logging.getLogger(__name__)

Event = tuple[int, TokenOutput | PackhorseError]
Events = asyncio.Queue[Event]


class Control(Protocol):
    """What the backend needs of transport.control.ControlClient."""

    def send_now(self, message: Model) -> bool:
        """False when there is no connection, and the message was dropped. Raises FrameError when it is too large."""

    async def receive(self) -> Any:
        """The next message. Raises LinkClosedError once closed."""

    async def close(self) -> None: ...


class TokenSource(Protocol):
    """What the backend needs of transport.tokens.TokenReceiver. `address` has the real port once started."""

    address: str

    async def start(self) -> None:
        """Binds. Raises ConfigError."""

    async def stop(self) -> None: ...

    async def receive(self) -> Tokens:
        """The next message. Raises LinkClosedError once stopped."""


class OpenJob:
    """One job that a request waits for. Delivers its outputs to the request's queue, in order and each once."""

    __slots__ = ("_choice", "_early", "_events", "_next_index", "job_id", "polls_since_end")

    def __init__(self, job_id: str, choice: int, events: Events) -> None:
        self.job_id = job_id
        self.polls_since_end: int | None = None  # None: the scheduler has not said that the job ended
        self._choice = choice
        self._events = events
        self._next_index = 0
        self._early: dict[int, TokenOutput] = {}

    def accept(self, output: TokenOutput) -> bool:
        """Delivers `output` when all before it were delivered, else keeps it. True when the last output was delivered."""
        if output.index < self._next_index:
            return False
        self._early[output.index] = output
        while (ready := self._early.pop(self._next_index, None)) is not None:
            self._next_index += 1
            self._events.put_nowait((self._choice, ready))
            if ready.finish_reason is not None:
                return True
        return False

    def fail(self, error: PackhorseError) -> None:
        self._events.put_nowait((self._choice, error))


class Backend:
    """All open jobs of one gateway. `reply_to` is the address at which workers reach its tokens, once it is started.

    `advertise`: the host in `reply_to`, where workers do not reach the bound one; an IPv6 address without its brackets.
    `poll_seconds`: how often the scheduler is asked for its status; `silence_seconds`: how long it may not answer;
    `late_seconds`: how long tokens may be missing after the scheduler said that the job ended. Both are counted in polls, so
    that a pause of this process is not taken for silence of the others.
    """

    def __init__(
        self,
        control: Control,
        tokens: TokenSource,
        advertise: str | None = None,
        *,
        poll_seconds: float = 1.0,
        silence_seconds: float = 5.0,
        late_seconds: float = 5.0,
    ) -> None:
        self.reply_to = ""
        self._advertise = advertise
        self.status: Status | None = None  # None: the scheduler has not answered, or is lost
        self.on_ended: Callable[[JobStats], None] = lambda _: (
            None
        )  # told of every job that ended well, with all its stats
        self._control = control
        self._tokens = tokens
        self._poll_seconds = poll_seconds
        self._silence_seconds = silence_seconds
        self._late_polls = late_seconds / poll_seconds
        self._unanswered = 0  # polls since the scheduler was last heard
        self._epoch: str | None = None
        self._jobs: dict[str, OpenJob] = {}
        self._owed: dict[str, Cancel] = {}  # cancels that had no connection to go out on
        self._questions = Questions(control.send_now)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def num_open(self) -> int:
        return len(self._jobs)

    async def start(self) -> None:
        """Raises ConfigError when the token address cannot be bound."""
        await self._tokens.start()
        self.reply_to = advertised(self._tokens.address, self._advertise)
        loops = {"control": self._control_loop(), "tokens": self._token_loop(), "poll": self._poll_loop()}
        self._tasks = [asyncio.create_task(loop, name=f"gateway-{name}") for name, loop in loops.items()]

    async def stop(self) -> None:
        """Idempotent. Fails what is open, and tells the scheduler."""
        self.fail_all(UnavailableError("the gateway is shutting down"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self._control.close()
        await self._tokens.stop()

    def submit(self, jobs: Sequence[Job]) -> Events:
        """Submits the jobs of one request; its events carry the job's place in `jobs`.

        Each job's events are its outputs by index, or one error after which nothing of it comes.
        Raises UnavailableError when there is no scheduler to take them, FrameError when a job is too large to send.
        """
        if self.status is None:
            raise UnavailableError("the scheduler does not answer")
        events: Events = asyncio.Queue()
        try:
            for choice, job in enumerate(jobs):
                self._jobs[job.job_id] = OpenJob(job.job_id, choice, events)
                if not self._control.send_now(Submit(job=job)):
                    raise UnavailableError("there is no connection to the scheduler")
        except PackhorseError:
            for job in jobs:
                self.cancel(job.job_id, "its request could not be submitted whole")
            raise
        return events

    async def explain(self, job_id: str = "", newest: int = 0) -> Explanations:
        """Of one job, of a completion's jobs, or of the newest so many. Raises UnavailableError without a scheduler's answer."""
        if self.status is None:
            raise UnavailableError("the scheduler does not answer")
        question = Explain(job_id=job_id, newest=newest)
        answer: Explanations = await self._questions.ask((job_id, newest), question, self._silence_seconds)
        return answer

    def cancel(self, job_id: str, reason: str) -> None:
        """Forgets a job and has the scheduler drop it, now or once it can be reached. Unknown jobs are ignored."""
        if self._jobs.pop(job_id, None) is not None:
            self._tell(Cancel(job_id=job_id, reason=reason))

    def fail_all(self, error: PackhorseError) -> None:
        """Every open job ends with `error`, and is cancelled at the scheduler in case it still knows it. So do open questions."""
        self._questions.fail_all(error)
        for job in list(self._jobs.values()):
            job.fail(error)
            self.cancel(job.job_id, error.message)

    def disconnected(self) -> None:
        """The connection to the scheduler broke: what was under way in either direction may be lost."""
        self._lose("the connection to the scheduler broke")

    def _tell(self, cancel: Cancel) -> None:
        if not self._control.send_now(cancel):
            self._owed[cancel.job_id] = cancel

    def _lose(self, why: str) -> None:
        if self.status is not None:
            log.warning("%s; %d jobs fail", why, len(self._jobs))
        self.status = None
        self.fail_all(UnavailableError(why))

    async def _control_loop(self) -> None:
        await self._serve("the scheduler", self._control.receive, self._heard)

    async def _token_loop(self) -> None:
        await self._serve("a worker", self._tokens.receive, self._routed)

    async def _serve(
        self, peer: str, receive: Callable[[], Coroutine[Any, Any, Any]], handle: Callable[[Any], None]
    ) -> None:
        """Handles messages until the socket is closed; a message that cannot be handled is logged and dropped."""
        while True:
            try:
                handle(await receive())
            except LinkClosedError:
                return
            except PackhorseError as error:
                log.warning("dropped what %s sent: %s", peer, error)
            except Exception:
                log.exception("a message of %s could not be handled", peer)
                await asyncio.sleep(0.1)  # a fault that repeats may not starve the loop

    async def _poll_loop(self) -> None:
        while True:
            try:
                self._poll()
            except Exception:
                log.exception("the scheduler could not be asked for its status")
            await asyncio.sleep(self._poll_seconds)

    def _poll(self) -> None:
        if self.status is not None and self._unanswered * self._poll_seconds >= self._silence_seconds:
            self._lose(f"the scheduler has been silent for {self._silence_seconds:g} s")
        for job in list(self._jobs.values()):
            if job.polls_since_end is None:
                continue
            job.polls_since_end += 1
            if job.polls_since_end > self._late_polls:
                self._fail(job.job_id, TransportError("the job ended but some of its tokens never arrived"))
        owed, self._owed = self._owed, {}
        for cancel in owed.values():
            self._tell(cancel)
        self._unanswered += 1
        self._control.send_now(StatusRequest())

    def _heard(self, message: Any) -> None:
        """One message of the scheduler."""
        self._unanswered = 0
        match message:
            case Status():
                self._adopt(message)
            case JobFailed():
                self._fail(message.job_id, message.error.error())
            case JobEnded():
                self.on_ended(message.stats)
                if job := self._jobs.get(message.job_id):
                    job.polls_since_end = 0
            case Explanations():
                self._questions.answered((message.job_id, message.newest), message)
            case Placed():
                log.debug("%s: %s -> %s", message.job_id, message.prefill_worker, message.decode_worker or "(none)")
            case _:
                log.warning("the scheduler sent %s, which is not for a gateway", type(message).__name__)

    def _adopt(self, status: Status) -> None:
        if self._epoch is not None and status.epoch != self._epoch:
            self._lose("the scheduler was restarted")
        if self.status is None:
            log.info("the scheduler answers, with %d workers", len(status.workers))
        self._epoch = status.epoch
        self.status = status

    def _fail(self, job_id: str, error: PackhorseError) -> None:
        if job := self._jobs.pop(job_id, None):
            job.fail(error)

    def _routed(self, tokens: Tokens) -> None:
        """One message of a worker. Tokens of unknown jobs (cancelled, failed) are dropped."""
        for output in tokens.outputs:
            job = self._jobs.get(output.job_id)
            if job is not None and job.accept(output):
                del self._jobs[output.job_id]


def advertised(address: str, host: str | None) -> str:
    """`address` (scheme://host:port) with another host. Raises ConfigError when peers could not connect to it."""
    scheme, _, rest = address.partition("://")
    bound, _, port = rest.rpartition(":")
    if host is not None:
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    if bound.strip("[]") in ("0.0.0.0", "::", "*"):
        raise ConfigError(
            f"token_bind is {address}, which names every interface: advertise must say at which host workers reach it",
            param="advertise",
        )
    return address
