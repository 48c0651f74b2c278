"""`bench serve`: plans the requests, sends them, sums up. Knows nothing of the command line, nor of torch."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.arrivals import parse_rate, renewal_arrivals, trace_arrivals
from bench.client import Endpoint, Target, base_url, first_model, open_client, run_clock, send
from bench.datasets import RequestBuilder, load_dataset, repeat
from bench.load import run_load
from bench.machine import describe_machine
from bench.metrics import Limits, summarize
from bench.progress import progress
from bench.record import RequestRecord
from bench.synthetic import story_prompts
from bench.workload import PlannedRequest
from packhorse.errors import ConfigError


@dataclass(frozen=True)
class ServeOptions:
    """The options of one load test, as the command line names them."""

    url: str
    rate: str = "1"
    num_prompts: int = 100
    dataset: Path | None = None
    model: str | None = None
    max_tokens: int | None = None
    max_prompt_tokens: int | None = None
    seed: int = 0
    burstiness: float = 1.0
    speed: float = 1.0
    concurrency: int | None = None
    endpoint: Endpoint = "completions"
    ignore_eos: bool = False
    temperature: float = 0.0
    timeout: float = 600.0
    max_ttft: float | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.endpoint not in ("completions", "chat"):
            raise ConfigError(f"endpoint={self.endpoint!r} is not 'completions' or 'chat'", param="endpoint")
        for name in ("num_prompts", "max_tokens", "max_prompt_tokens", "concurrency", "timeout", "max_ttft"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name}={value} is not a positive number", param=name)


@dataclass(frozen=True)
class ServeResult:
    """Everything that `--json` holds."""

    summary: dict[str, Any]
    config: dict[str, Any]
    records: list[RequestRecord]
    interrupted: bool

    def as_json(self) -> dict[str, Any]:
        return {
            "summary": self.summary,
            "config": self.config,
            "requests": [record.as_json() for record in self.records],
        }


def plan_requests(options: ServeOptions) -> tuple[list[PlannedRequest], list[float]]:
    """The requests and their arrival times. Raises ConfigError (DatasetError) for what cannot be planned."""
    rate = parse_rate(options.rate)
    if options.dataset is None:
        plan = story_prompts(options.num_prompts, options.seed, options.endpoint == "chat", options.max_tokens)
    else:
        builder = RequestBuilder(options.seed, options.max_tokens, options.max_prompt_tokens)
        plan = load_dataset(options.dataset, options.num_prompts, builder)
    if rate is None:
        return plan, trace_arrivals([request.arrival_seconds for request in plan], options.speed)
    plan = repeat(plan, options.num_prompts)
    return plan, renewal_arrivals(len(plan), rate, options.burstiness, options.seed)


async def run_serve(options: ServeOptions, api_key: str | None = None) -> ServeResult:
    """Runs the load test; SIGINT ends it early with what is done so far."""
    plan, arrivals = plan_requests(options)
    url = base_url(options.url)
    stop = asyncio.Event()
    async with open_client(api_key) as client:
        model = options.model or await first_model(client, url)
        target = Target(
            url, model, options.endpoint, options.ignore_eos, options.temperature, options.timeout, options.max_ttft
        )
        with progress("requests", len(plan)) as view, _stop_on_sigint(stop):
            now = run_clock()

            async def send_one(request: PlannedRequest, record: RequestRecord) -> None:
                await send(client, target, request, record, now)

            def done(record: RequestRecord) -> None:
                view.advance("" if record.status == "ok" else f"last failure: {record.cause}")

            records = await run_load(
                plan, arrivals, send_one, now, concurrency=options.concurrency, stop=stop, done=done
            )
    summary = summarize(records, len(plan), options.limits)
    return ServeResult(summary, _config(replace(options, model=model), len(plan)), records, stop.is_set())


def _config(options: ServeOptions, planned: int) -> dict[str, Any]:
    dataset = str(options.dataset) if options.dataset else "synthetic stories"
    return {**asdict(options), "dataset": dataset, "num_prompts": planned, "machine": describe_machine()}


@contextmanager
def _stop_on_sigint(stop: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C sets `stop`, a second one ends the process as usual. No effect outside the main thread."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    try:
        loop.add_signal_handler(signal.SIGINT, first)
    except (NotImplementedError, RuntimeError, ValueError):
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
