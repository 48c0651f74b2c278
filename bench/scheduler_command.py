"""`packhorse bench scheduler`: its flags, and which of its four runs they ask for. What a run needs is imported when it starts."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.console import table_console
from bench.exits import config_errors
from packhorse.errors import ConfigError

_ALONE = ("scale", "against_live", "heterogeneous")
_SATURATION = ("saturation", "workload", "policy", "placement", "kv_format", "cluster", "max_batch", "json")
_NEEDS = {"repeats": "against_live", "failure_seconds": "failures"}  # what has no effect without another flag
_INSTEAD = {"load": "rate", "load_of": "rate"}  # and what has none beside another


def scheduler(
    context: typer.Context,
    workload: Annotated[
        list[str] | None, typer.Option(help="synthetic, alpaca, azure-conv, azure-code, mooncake, arxiv, or a file")
    ] = None,
    policy: Annotated[list[str] | None, typer.Option(help="scheduling policies, or all; default fcfs")] = None,
    predictor: Annotated[list[str] | None, typer.Option(help="none, learned, oracle, or another name")] = None,
    placement: Annotated[list[str] | None, typer.Option(help="placements, or all; default least-loaded")] = None,
    load: Annotated[list[float] | None, typer.Option(help="fractions of measured saturation; default 0.9")] = None,
    rate: Annotated[list[float] | None, typer.Option(help="requests per second, instead of --load")] = None,
    requests: Annotated[int, typer.Option(help="requests of one simulation")] = 2000,
    seeds: Annotated[int, typer.Option(help="simulations of each case, with seeds 0, 1, ...")] = 1,
    kv_format: Annotated[
        list[str] | None, typer.Option(help="page formats, raw or k<bits>v<bits>; default raw")
    ] = None,
    load_of: Annotated[
        str | None, typer.Option(help="format whose saturation --load refers to; default: each its own")
    ] = None,
    cluster: Annotated[str, typer.Option(help="a100, a100-40gb, or a cluster file that the planner splits")] = "a100",
    max_batch: Annotated[
        int | None,
        typer.Option(
            help="jobs on a decode worker; default 32, in a file 256, and what leaves half of the memory to pages"
        ),
    ] = None,
    arrivals: Annotated[str, typer.Option(help="poisson, or trace: the workload's own times at that rate")] = "poisson",
    frozen: Annotated[bool, typer.Option("--frozen", help="predictors learn nothing during the run")] = False,
    tool_pauses: Annotated[
        float, typer.Option(metavar="SHARE", help="requests that declare a tool pause, 0 to 1; --load is without them")
    ] = 0.0,
    failures: Annotated[int, typer.Option(help="workers that vanish during a run, at random times")] = 0,
    failure_seconds: Annotated[float, typer.Option(help="until a vanished worker is back, empty")] = 30.0,
    named_devices: Annotated[
        bool,
        typer.Option("--named-devices", help="workers name their GPUs: the scheduler starts from their true costs"),
    ] = False,
    prefix_cache: Annotated[
        bool, typer.Option(help="decode workers keep prompts' pages, where the workload says which prompts begin alike")
    ] = True,
    slo_ttft: Annotated[float, typer.Option(help="goodput: most seconds to the first token")] = 5.0,
    slo_tpot: Annotated[float, typer.Option(help="goodput: most seconds per output token")] = 0.2,
    json: Annotated[Path | None, typer.Option(help="write the records here")] = None,
    plot: Annotated[Path | None, typer.Option(help="write PNG and SVG into this folder; needs matplotlib")] = None,
    saturation: Annotated[
        bool, typer.Option("--saturation", help="only the rate at which each placement and policy saturates")
    ] = False,
    scale: Annotated[
        bool, typer.Option("--scale", help="1,000,000 requests over 1,000 workers, and the time it takes")
    ] = False,
    against_live: Annotated[
        bool, typer.Option("--against-live", help="a live cluster on the embedded model against its simulation")
    ] = False,
    repeats: Annotated[int, typer.Option(help="with --against-live: how often")] = 3,
    heterogeneous: Annotated[
        bool, typer.Option("--heterogeneous", help="placements on two clusters of unlike machines, against round robin")
    ] = False,
) -> None:
    """The live scheduler on simulated workers: JCT, TTFT, waits and goodput by policy, predictor, placement and load."""
    lists = {
        "workload": workload, "policy": policy, "predictor": predictor, "placement": placement, "load": load,
        "rate": rate, "kv_format": kv_format,
    }  # fmt: skip
    several = {name: tuple(dict.fromkeys(values)) for name, values in lists.items() if values}
    from bench.report import check_writable

    given = [name for name in context.params if _is_given(context, name)]
    with config_errors():
        if json:
            check_writable("json", json)
        if scale or against_live or heterogeneous:
            _run_alone(given, repeats, json)
            return
        _check_heeded(given)
        single = {
            "requests": requests, "seeds": seeds, "load_of": load_of, "cluster": cluster, "max_batch": max_batch,
            "arrivals": arrivals, "frozen": frozen, "tool_pauses": tool_pauses, "failures": failures,
            "failure_seconds": failure_seconds, "named_devices": named_devices, "prefix_cache": prefix_cache,
        }  # fmt: skip
        _run_grid({**single, **several}, (slo_ttft, slo_tpot), json, plot, saturation=saturation)


def _run_alone(given: Collection[str], repeats: int, json: Path | None) -> None:
    """One of the runs that have their own workloads and clusters. A flag that would have no effect is refused."""
    alone = [name for name in given if name in _ALONE]
    heard = {*alone[:1], "json", *(["repeats"] if alone == ["against_live"] else [])}
    if others := [name for name in given if name not in heard]:
        raise ConfigError(f"{_flags(alone[0])} stands alone; given beside it: {_flags(*others)}")
    if alone[0] == "scale":
        _run_scale(json)
    elif alone[0] == "heterogeneous":
        _run_heterogeneous(json)
    else:
        _run_against_live(repeats, json)


def _check_heeded(given: Collection[str]) -> None:
    """A flag that would have no effect on the grid, or on its saturation alone, is refused."""
    if "saturation" in given and (others := [name for name in given if name not in _SATURATION]):
        raise ConfigError(f"{_flags('saturation')} has no use for {_flags(*others)}")
    for name in given:
        if (needed := _NEEDS.get(name)) and needed not in given:
            raise ConfigError(f"{_flags(name)} has no effect without {_flags(needed)}")
        if (other := _INSTEAD.get(name)) and other in given:
            raise ConfigError(f"{_flags(other)} stands instead of {_flags(name)}; given are both")


def _flags(*names: str) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _run_scale(json: Path | None) -> None:
    from bench.sim_scale import ScaleOptions, print_scale, run_scale
    from packhorse.garbage import calm_collector

    calm_collector()  # as the live scheduler's process does
    result = run_scale(ScaleOptions())
    print_scale(result, table_console())
    _write(json, result)


def _run_heterogeneous(json: Path | None) -> None:
    from bench.sim_hetero import print_hetero, run_hetero

    result = run_hetero()
    print_hetero(result, table_console())
    _write(json, result)


def _run_against_live(repeats: int, json: Path | None) -> None:
    from bench.sim_live import LiveOptions, print_live, run_live

    result = run_live(LiveOptions(repeats=repeats))
    print_live(result, table_console())
    _write(json, result)


def _run_grid(
    given: dict[str, Any], slo: tuple[float, float], json: Path | None, plot: Path | None, *, saturation: bool
) -> None:
    from bench.scheduler import run_saturation, run_scheduler
    from bench.sim_options import SchedulerOptions
    from bench.sim_plot import check_plot, write_plots
    from bench.sim_report import print_saturation, print_scheduler
    from scheduler.simulator import Slo

    options = SchedulerOptions(slo=Slo(*slo), **given)
    if plot:
        check_plot(plot)
    result = run_saturation(options) if saturation else run_scheduler(options)
    print_saturation(result, table_console()) if saturation else print_scheduler(result, table_console())
    _write(json, result)
    if plot and not saturation:
        write_plots(plot, result)


def _write(json: Path | None, result: Any) -> None:
    from bench.report import write_json

    if json:
        write_json(json, result)
