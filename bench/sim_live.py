"""`bench scheduler --against-live`: a live cluster on the embedded model, and its simulation with costs fitted to other requests.

One repeat serves the workload in parts, and a calibration part before, between and after them: other requests of the same kind at the same
rate, so that what the processes take from each other on shared cores, and what other work takes from them just then, is in the fit. The
simulator then plays the workload's requests at the same times. Knows nothing of how costs are fitted.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console

from bench.arrivals import renewal_arrivals
from bench.client import Target, base_url, first_model, open_client, run_clock, send
from bench.load import run_load
from bench.machine import describe_machine
from bench.metrics import spread
from bench.record import RequestRecord
from bench.sim_fit import Fit, Part, fit_costs
from bench.synthetic import story_prompts
from bench.workload import PlannedRequest
from packhorse.config import DecodeConfig, PrefillConfig
from packhorse.errors import ConfigError, PackhorseError
from packhorse.launcher import ClusterConfig, LocalCluster
from scheduler.cost import WorkerPrior
from scheduler.planner import read_shape
from scheduler.simulator import (
    Arrivals,
    Records,
    SimCluster,
    Simulation,
    SimWorkerSpec,
    Workload,
    model_size,
    saturation_rate,
)

WARM_UP = 6
FULL, FULL_REQUESTS = 12, 60  # requests at once, and in all, of the closed loop from which the rate follows
_APART_SECONDS = 60.0  # between two parts in the simulation: all of one has ended before the next, as it has live
_LOOPBACK_BYTES_PER_SECOND = 1e9
Serve = Callable[[int, int, list[float], int | None], Awaitable[list[RequestRecord]]]


@dataclass(frozen=True)
class LiveOptions:
    """`load` is a fraction of the saturation of the fitted simulation; `requests` are those of one repeat's workload.

    They are served in `parts`; before, between and after them run parts of `calibration` requests.
    """

    requests: int = 200
    repeats: int = 3
    parts: int = 4
    calibration: int = 50
    load: float = 0.6
    seed: int = 1
    kv_format: str = "k4v2"

    def __post_init__(self) -> None:
        for name in ("repeats", "parts", "calibration"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is less than 1", param=name)
        if self.requests < self.parts:
            raise ConfigError(f"requests={self.requests} are fewer than parts={self.parts}", param="requests")


def run_live(options: LiveOptions | None = None) -> dict[str, Any]:
    """Calibrates, measures, simulates. Raises PackhorseError when the cluster does not come up or requests fail."""
    options = options or LiveOptions()
    config = ClusterConfig(
        port=0, threads=1, kv_format=options.kv_format, restart=False, policy="fcfs", predictor="none"
    )  # one prefill and one decode worker, in the order that is simulated
    with LocalCluster(config) as cluster:
        return asyncio.run(_measure(cluster.url, options))


async def _measure(url: str, options: LiveOptions) -> dict[str, Any]:
    async with open_client() as client:
        target = Target(base_url(url), await first_model(client, base_url(url)), "completions", True, 0.0, 300.0)

        async def serve(count: int, seed: int, arrivals: list[float], concurrency: int | None) -> list[RequestRecord]:
            plan, now = story_prompts(count, seed, chat=False), run_clock()

            async def send_one(request: PlannedRequest, record: RequestRecord) -> None:
                await send(client, target, request, record, now)

            return _all_well(await run_load(plan, arrivals, send_one, now, concurrency=concurrency))

        await serve(WARM_UP, 1000, [0.0] * WARM_UP, 2)
        full = await serve(FULL_REQUESTS, 1001, [0.0] * FULL_REQUESTS, FULL)
        rate = options.load * _saturation(full, options.kv_format)
        repeats = [await _repeat(serve, rate, options, options.seed + i) for i in range(options.repeats)]
    errors = [repeat["error"] for repeat in repeats]
    return {
        "machine": describe_machine(),
        "options": asdict(options),
        "requests_per_second": rate,
        "repeats": repeats,
        "mean_error": fmean(errors),
        "worst_error": max(errors, key=abs),
    }


def _saturation(full: Part, kv_format: str) -> float:
    """Of the simulation that a closed loop's records lead to, requests per second."""
    cost = fit_costs([full], lambda _: 0.0).cost
    return saturation_rate(sim_cluster(cost), workload_of([full]), kv_format)


async def _repeat(serve: Serve, rate: float, options: LiveOptions, seed: int) -> dict[str, Any]:
    """The workload of `seed` in parts, each between two of calibration, and what is predicted of it."""

    async def part(count: int, number: int) -> list[RequestRecord]:
        own = 1000 * seed + number
        return await serve(count, own, renewal_arrivals(count, rate, 1.0, own), None)

    sizes = [len(piece) for piece in np.array_split(np.arange(options.requests), options.parts)]
    calibration, workload = [await part(options.calibration, 500)], []
    for number, size in enumerate(sizes):
        workload.append(await part(size, number))
        calibration.append(await part(options.calibration, 501 + number))
    fit = fit_costs(calibration, lambda cost: fmean(_ttft(simulate(sim_cluster(cost), calibration, options.kv_format))))
    return compare(workload, fit, options.kv_format)


def compare(workload: Sequence[Part], fit: Fit, kv_format: str) -> dict[str, Any]:
    """Measured and predicted, with the relative error of the mean JCT."""
    played = simulate(sim_cluster(fit.cost), workload, kv_format)
    measured = [record.jct for part in workload for record in part if record.jct is not None]
    predicted = [end - begin + fit.overhead_seconds for begin, end in zip(played.arrived, played.ended, strict=True)]
    return {
        "fit": asdict(fit),
        "measured_jct_seconds": spread(measured),
        "predicted_jct_seconds": spread(predicted),
        "measured_ttft_seconds": spread([r.ttft for part in workload for r in part if r.ttft is not None]),
        "predicted_ttft_seconds": spread([seconds + fit.overhead_seconds for seconds in _ttft(played)]),
        "error": float(np.mean(predicted) / np.mean(measured) - 1),
    }


def _all_well(records: list[RequestRecord]) -> list[RequestRecord]:
    failed = [record for record in records if record.status != "ok"]
    if failed:
        raise PackhorseError(f"{len(failed)} of {len(records)} requests failed; the first: {failed[0].error}")
    return sorted(records, key=lambda record: record.scheduled)


def _ttft(played: Records) -> list[float]:
    return [first - begin for begin, first in zip(played.arrived, played.first_token, strict=True)]


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


def workload_of(parts: Sequence[Part]) -> Workload:
    records = [record for part in parts for record in part]
    output = [record.completion_tokens for record in records]
    return Workload("live", [record.prompt_tokens or 1 for record in records], output, [r.max_tokens for r in records])


def simulate(cluster: SimCluster, parts: Sequence[Part], kv_format: str) -> Records:
    """The parts one after the other, each at its own times."""
    times: list[float] = []
    for part in parts:
        start = times[-1] + _APART_SECONDS if times else 0.0
        times += [start + record.scheduled for record in part]
    return Simulation(cluster, workload_of(parts), Arrivals(times), kv_format=kv_format).run()


def print_live(result: dict[str, Any], console: Console) -> None:
    options = result["options"]
    lines = [
        f"{options['requests']} requests at {result['requests_per_second']:.2f}/s on the embedded model, "
        f"{options['kv_format']} pages, one prefill and one decode worker, {options['repeats']} times",
        *(_repeat_line(repeat) for repeat in result["repeats"]),
        f"error of the mean JCT: {result['mean_error']:+.1%} in the mean, {result['worst_error']:+.1%} at worst",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def _repeat_line(repeat: dict[str, Any]) -> str:
    def pair(what: str, key: str) -> str:
        measured, predicted = repeat[f"measured_{what}_seconds"][key], repeat[f"predicted_{what}_seconds"][key]
        return f"{measured:.3f} s ({predicted:.3f})"

    fitted = (
        "prefill {:.2g} + {:.2g} n + {:.2g} n²; step {:.2g} + {:.2g} context + {:.2g} batch; shipping {:.2g} s".format(
            *repeat["fit"]["cost"]["prefill"], *repeat["fit"]["cost"]["decode"], repeat["fit"]["cost"]["transfer"][0]
        )
    )
    return (
        f"measured (predicted): mean JCT {pair('jct', 'mean')} {repeat['error']:+.1%}, p50 {pair('jct', 'p50')}, "
        f"p99 {pair('jct', 'p99')}, mean TTFT {pair('ttft', 'mean')}\n"
        f"    fitted: {fitted}; beside workers {repeat['fit']['overhead_seconds']:.2g} s"
    )
