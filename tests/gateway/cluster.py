"""A cluster in a few queues: takes the gateway's jobs and answers them from a script, as slowly or wrongly as a test wants.

It stands where ControlClient and TokenReceiver are, so the gateway's own backend runs in the tests.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from model.text import FinishRule, Tokenizer
from packhorse.errors import LinkClosedError, PackhorseError
from transport.messages import (
    Cancel,
    ErrorInfo,
    Explain,
    Explanation,
    Explanations,
    Job,
    JobEnded,
    JobFailed,
    JobStats,
    KVLayout,
    PredictionErrors,
    Status,
    StatusRequest,
    Submit,
    TokenLogprob,
    TokenOutput,
    Tokens,
    WorkerInfo,
    WorkerLoad,
    WorkerStatus,
)

LAYOUT = KVLayout(
    model="embedded", revision="1", layers=2, kv_heads=1, head_dim=64, dtype="float32", kv_format="k4v2",
    page_tokens=64, sink_tokens=4, page_bytes=1024, layout_version=1,
)  # fmt: skip
STATS = JobStats(
    prompt_tokens=3, prefill_worker="prefill-0", decode_worker="decode-0", bytes_shipped=100, bytes_held=50, raw_bytes=400,
    queue_seconds=0.25, prefill_seconds=0.5, ship_seconds=0.125,
)  # fmt: skip
ERRORS = PredictionErrors(count=256, total=900, bias=-0.25, p50=0.5, p90=0.75)
TEXT = "Once upon a time there was a small red fox who liked the snow and the trees in it."


def worker(worker_id: str, role: Any) -> WorkerStatus:
    info = WorkerInfo(
        worker_id=worker_id, role=role, layout=LAYOUT, max_context_tokens=1024, max_jobs=4, capacity_pages=9
    )
    load = WorkerLoad(pages_cached=5, leases=2, lease_bytes=2048, links=1, link_bytes_per_second=5e6)
    return WorkerStatus(info=info, load=load, jobs=1, reserved_pages=3, heartbeat_age_seconds=0.5)


class FakeTokens:
    """The gateway's end of the token plane."""

    def __init__(self) -> None:
        self.address = "tcp://127.0.0.1:7777"
        self.inbox: asyncio.Queue[Tokens | None] = asyncio.Queue()
        self.open = False

    async def start(self) -> None:
        self.open = True

    async def stop(self) -> None:
        self.open = False
        self.inbox.put_nowait(None)

    async def receive(self) -> Tokens:
        message = await self.inbox.get()
        if message is None:
            raise LinkClosedError("stopped")
        return message


class FakeCluster:
    """`script` gives the token ids of a job; they end by the worker's own FinishRule, or with EOS.

    `hold`: waits for `resume` before token number `hold`; `num_held` jobs do so. `reverse`: sends all tokens in the wrong order.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.tokens = FakeTokens()
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[Any] = []
        self.jobs: dict[str, Job] = {}
        self.cancelled: dict[str, str] = {}
        self.running: dict[str, asyncio.Task[None]] = {}
        self.script: Callable[[Job], list[int]] = lambda job: tokenizer.encode(TEXT)
        self.errors: dict[int, PackhorseError] = {}  # by token number: fails the job there
        self.fails: Callable[[Job], bool] = lambda job: True  # the jobs that `errors` is for
        self.hold: int | None = None
        self.num_held = 0
        self.resume = asyncio.Event()
        self.reverse = False
        self.connected = self.answers = True
        self.open = True
        self.epoch = "epoch-1"
        self.workers: tuple[WorkerStatus, ...] = (worker("prefill-0", "prefill"), worker("decode-0", "decode"))

    # ---- the gateway's end of the control plane

    def send_now(self, message: Any) -> bool:
        if not self.connected:
            return False
        self.sent.append(message)
        match message:
            case Submit():
                self.jobs[message.job.job_id] = message.job
                self.running[message.job.job_id] = asyncio.create_task(self._run(message.job))
            case Cancel():
                self.cancelled[message.job_id] = message.reason
                if task := self.running.pop(message.job_id, None):
                    task.cancel()
            case Explain() if self.answers:
                known = [self.explained(job) for job in self.jobs if job == message.job_id or message.newest]
                known += [self.explained(job) for job in self.jobs if job.startswith(f"{message.job_id}-")]
                told = tuple(known[-message.newest :] if message.newest else known)
                self.inbox.put_nowait(Explanations(job_id=message.job_id, newest=message.newest, jobs=told))
            case StatusRequest() if self.answers:
                self.inbox.put_nowait(self.status())
        return True

    async def receive(self) -> Any:
        message = await self.inbox.get()
        if message is None:
            raise LinkClosedError("closed")
        return message

    async def close(self) -> None:
        self.open = False
        self.inbox.put_nowait(None)
        for task in self.running.values():
            task.cancel()
        await asyncio.gather(*self.running.values(), return_exceptions=True)

    # ---- what workers and scheduler do

    def status(self) -> Status:
        states, total = {"decoding": len(self.running)}, {"done": 7, "failed:worker_lost": 1}
        errors = {"output_tokens": ERRORS, "transfer": ERRORS.model_copy(update={"count": 0, "total": 0})}
        return Status(
            epoch=self.epoch, policy="fcfs", workers=self.workers, jobs_by_state=states, jobs_total=total,
            queue_seconds=2.5, preemptions_total=11, predictions=errors,
        )  # fmt: skip

    def explained(self, job_id: str) -> Explanation:
        return Explanation(
            job_id=job_id, policy="fcfs", prefill_worker="prefill-0", decode_worker="decode-0", why="free"
        )

    def outputs(self, job: Job) -> list[TokenOutput]:
        rule = FinishRule(job, self.tokenizer, self.tokenizer.eos_token_ids)
        made: list[TokenOutput] = []
        silence = itertools.repeat(self.tokenizer.eos_token_ids[0])
        for index, token_id in enumerate(itertools.chain(self.script(job), silence)):
            reason, stop = rule.push(token_id)
            made.append(self.output(job, index, token_id, finish_reason=reason, stop_string=stop))
            if reason is not None:
                break
        return made

    def output(self, job: Job, index: int, token_id: int, **fields: Any) -> TokenOutput:
        if job.sampling.logprobs is not None:
            others = range(job.sampling.logprobs)
            tops = tuple(
                TokenLogprob(token_id=token_id + i, logprob=-0.5 - i if i < 2 else float("-inf")) for i in others
            )
            fields |= {"logprob": -0.5, "top_logprobs": tops}
        if index == 0 or fields.get("finish_reason"):
            fields |= {"stats": STATS}
        return TokenOutput(job_id=job.job_id, index=index, token_id=token_id, **fields)

    def push(self, *outputs: TokenOutput) -> None:
        self.tokens.inbox.put_nowait(Tokens(worker_id="decode-0", outputs=outputs))

    def fail(self, job_id: str, error: PackhorseError) -> None:
        self.inbox.put_nowait(JobFailed(job_id=job_id, error=ErrorInfo.of(error)))

    async def _run(self, job: Job) -> None:
        outputs = self.outputs(job)
        for number, output in enumerate(reversed(outputs) if self.reverse else outputs):
            if self.hold == number:
                self.num_held += 1
                await self.resume.wait()
            if number in self.errors and self.fails(job):
                self.fail(job.job_id, self.errors[number])
                return
            self.push(output)
            await asyncio.sleep(0)
        self.running.pop(job.job_id, None)
        self.inbox.put_nowait(JobEnded(job_id=job.job_id, stats=STATS))
