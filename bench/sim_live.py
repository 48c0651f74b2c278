"""`bench scheduler --against-live`: a live cluster on the embedded model, and its simulation with costs fitted beforehand.

The cluster serves a calibration part before and after the workload (one request at a time, and several), from which prefill, step,
shipping and the time that every request spends outside of workers are fitted. The simulator then plays the workload's requests at
the same times. What the simulator does not know: that all processes share this machine's cores.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console

from bench.arrivals import renewal_arrivals
from bench.client import Target, base_url, first_model, open_client, run_clock, send
from bench.load import run_load
from bench.machine import describe_machine
from bench.metrics import spread
from bench.record import RequestRecord
from bench.synthetic import story_prompts
from bench.workload import PlannedRequest
from packhorse.config import DecodeConfig, PrefillConfig
from packhorse.errors import PackhorseError
from packhorse.launcher import ClusterConfig, LocalCluster
from scheduler.cost import DEFAULT_PRIOR, WorkerPrior, fit_relative
from scheduler.planner import read_shape
from scheduler.simulator import (
    Arrivals,
    SimCluster,
    Simulation,
    SimWorkerSpec,
    Workload,
    model_size,
    saturation_rate,
)

BEFORE, AFTER = ((1, 24), (4, 32), (12, 48)), ((4, 32),)  # (concurrency, requests) of the calibration's rounds
_UNQUEUED = 4  # the highest concurrency at which prompts seldom wait for each other on the prefill worker
WARM_UP = 6
_NO_PRIOR = 1e-3  # weight of the prior in the fits: its scale alone counts
_LOOPBACK_BYTES_PER_SECOND = 1e9


@dataclass(frozen=True)
class LiveOptions:
    """`load` is a fraction of the saturation of the fitted simulation."""

    requests: int = 200
    load: float = 0.6
    seed: int = 1
    kv_format: str = "k4v2"


@dataclass(frozen=True)
class Fit:
    """`cost` of the workers; `overhead_seconds` is what a request takes beside them: gateway, scheduler, sockets."""

    cost: WorkerPrior
    overhead_seconds: float


def run_live(options: LiveOptions | None = None) -> dict[str, Any]:
    """Calibrates, measures, simulates. Raises PackhorseError when the cluster does not come up or requests fail."""
    options = options or LiveOptions()
    config = ClusterConfig(prefill=1, decode=1, port=0, threads=1, kv_format=options.kv_format, restart=False)
    with LocalCluster(config) as cluster:
        return asyncio.run(_measure(cluster.url, options))


async def _measure(url: str, options: LiveOptions) -> dict[str, Any]:
    async with open_client() as client:
        target = Target(base_url(url), await first_model(client, base_url(url)), "completions", True, 0.0, 300.0)

        async def serve(count: int, seed: int, arrivals: list[float], concurrency: int | None) -> list[RequestRecord]:
            plan, now = story_prompts(count, seed, chat=False), run_clock()

            async def send_one(request: PlannedRequest, record: RequestRecord) -> None:
                await send(client, target, request, record, now)

            records = await run_load(plan, arrivals, send_one, now, concurrency=concurrency)
            return _all_well(records)

        await serve(WARM_UP, 1000, [0.0] * WARM_UP, 2)
        rounds = [(each, await serve(count, 1001 + each, [0.0] * count, each)) for each, count in BEFORE]
        first = sim_cluster(fit_costs(rounds).cost)
        rate = options.load * saturation_rate(first, workload_of(rounds[-1][1]), options.kv_format)
        arrivals = renewal_arrivals(options.requests, rate, 1.0, options.seed)
        records = await serve(options.requests, options.seed, arrivals, None)
        rounds += [(each, await serve(count, 2001 + each, [0.0] * count, each)) for each, count in AFTER]
    fit = fit_costs(rounds)
    predicted = simulate(sim_cluster(fit.cost), records, fit, options.kv_format)
    measured = [record.jct for record in records if record.jct is not None]
    return {
        "machine": describe_machine(),
        "options": asdict(options),
        "fit": asdict(fit),
        "requests_per_second": rate,
        "measured_jct_seconds": spread(measured),
        "predicted_jct_seconds": spread(predicted),
        "error": float(np.mean(predicted) / np.mean(measured) - 1),
    }


def _all_well(records: list[RequestRecord]) -> list[RequestRecord]:
    failed = [record for record in records if record.status != "ok"]
    if failed:
        raise PackhorseError(f"{len(failed)} of {len(records)} requests failed; the first: {failed[0].error}")
    return sorted(records, key=lambda record: record.scheduled)


def fit_costs(rounds: Sequence[tuple[int, Sequence[RequestRecord]]]) -> Fit:
    """From calibration rounds, (concurrency, records), the first of them with one request at a time."""
    unqueued = [r for concurrency, records in rounds if concurrency <= _UNQUEUED for r in records if r.kv_transfer]
    prompts = np.array([record.prompt_tokens or 1 for record in unqueued], dtype=np.float64)
    prefill = np.array([_prefill_seconds(record) for record in unqueued])
    features = np.stack([np.ones_like(prompts), prompts, prompts**2], axis=1)
    rows = [row for _, records in rounds for row in step_samples(records)]
    steps, seconds = np.array([row[:3] for row in rows]), np.array([row[3] for row in rows])
    a, b, c = fit_relative(features, prefill, _even(features, prefill), _NO_PRIOR)
    d, e, f = fit_relative(steps, seconds, _even(steps, seconds), _NO_PRIOR)
    alone = [record for record in rounds[0][1] if record.kv_transfer and len(record.chunk_times) > 2]
    latency = max(0.0, median(record.itl[0] - median(record.itl[1:]) for record in alone))
    beside = median(_sent_to_first(record) - _prefill_seconds(record) for record in alone)
    return Fit(WorkerPrior((a, b, c), (d, e, f), (latency, DEFAULT_PRIOR.transfer[1])), max(0.0, beside))


def _prefill_seconds(record: RequestRecord) -> float:
    assert record.kv_transfer is not None
    return float(record.kv_transfer["prefill_seconds"])


def _sent_to_first(record: RequestRecord) -> float:
    """In a closed loop a request waits for its turn before it is sent."""
    assert record.first_token is not None
    assert record.sent is not None
    return record.first_token - record.sent


def step_samples(records: Sequence[RequestRecord]) -> list[tuple[float, float, float, float]]:
    """(1, mean context of the batch, mean batch, mean seconds of a step) over each request's life from the second token on.

    Between the first two tokens lies shipping.
    """
    spans = [
        (
            record.chunk_times[1],
            record.chunk_times[-1],
            (record.prompt_tokens or 0) + record.completion_tokens / 2,
            record,
        )
        for record in records
        if len(record.chunk_times) > 8
    ]
    samples = []
    for begin, end, _, record in spans:
        if end <= begin:
            continue
        shares = [(max(0.0, min(end, e) - max(begin, b)) / (end - begin), context) for b, e, context, _ in spans]
        batch = sum(share for share, _ in shares)
        context = sum(share * tokens for share, tokens in shares)
        samples.append((1.0, context, batch, (end - begin) / (record.completion_tokens - 2)))
    return samples


def _even(features: np.ndarray[Any, Any], seconds: np.ndarray[Any, Any]) -> list[float]:
    """A prior in which each term explains the same share of the times."""
    typical = np.median(seconds) / np.median(features, axis=0) / features.shape[1]
    return [float(value) for value in typical]


def sim_cluster(cost: WorkerPrior) -> SimCluster:
    """One prefill and one decode worker with the live ones' limits."""
    found = importlib.util.find_spec("model")
    assert found is not None
    assert found.submodule_search_locations is not None
    shape = read_shape(Path(found.submodule_search_locations[0]) / "embedded", "embedded")
    prefill, decode = PrefillConfig(), DecodeConfig()
    network = _LOOPBACK_BYTES_PER_SECOND
    memory = decode.pool_bytes + decode.max_jobs * model_size(shape).residual_bytes
    return SimCluster(
        "embedded",
        model_size(shape),
        (
            SimWorkerSpec("prefill-0", "prefill", cost, prefill.max_jobs, 0, network, prefill.chunk_tokens),
            SimWorkerSpec("decode-0", "decode", cost, decode.max_jobs, memory, network),
        ),
    )


def workload_of(records: Sequence[RequestRecord]) -> Workload:
    output = [record.completion_tokens for record in records]
    return Workload("live", [record.prompt_tokens or 1 for record in records], output, [r.max_tokens for r in records])


def simulate(cluster: SimCluster, records: Sequence[RequestRecord], fit: Fit, kv_format: str) -> list[float]:
    """The predicted JCT of each request, in order of arrival."""
    times = [record.scheduled for record in records]
    played = Simulation(cluster, workload_of(records), Arrivals(times), kv_format=kv_format).run()
    return [end - begin + fit.overhead_seconds for begin, end in zip(played.arrived, played.ended, strict=True)]


def print_live(result: dict[str, Any], console: Console) -> None:
    measured, predicted = result["measured_jct_seconds"], result["predicted_jct_seconds"]
    cost = result["fit"]["cost"]
    for line in (
        f"{result['options']['requests']} requests at {result['requests_per_second']:.2f}/s on the embedded model, "
        f"{result['options']['kv_format']} pages, one prefill and one decode worker",
        f"mean JCT  measured {measured['mean']:.3f} s, predicted {predicted['mean']:.3f} s ({result['error']:+.1%})",
        f"p50       measured {measured['p50']:.3f} s, predicted {predicted['p50']:.3f} s",
        f"p99       measured {measured['p99']:.3f} s, predicted {predicted['p99']:.3f} s",
        "fitted    prefill {:.2g} + {:.2g} n + {:.2g} n²; step {:.2g} + {:.2g} context + {:.2g} batch; ".format(
            *cost["prefill"], *cost["decode"]
        )
        + f"shipping {cost['transfer'][0]:.2g} s; beside workers {result['fit']['overhead_seconds']:.2g} s",
    ):
        console.print(line, soft_wrap=True, highlight=False)
