"""`packhorse bench proof`: its flags. What a run needs is imported when it starts."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.console import table_console
from bench.exits import config_errors
from packhorse.errors import ConfigError

NOTE_SECONDS = 10.0


class Notes:
    """Says on standard error now and then how many simulations are done, and which was the last."""

    def __init__(self) -> None:
        self._count, self._said_at = 0, time.monotonic()

    def __call__(self, record: dict[str, Any]) -> None:
        self._count += 1
        if time.monotonic() - self._said_at >= NOTE_SECONDS:
            self._said_at = time.monotonic()
            case = " ".join(str(record[name]) for name in ("workload", "kv_format", "policy", "predictor"))
            rate = record["requests_per_second"]
            print(f"{self._count} simulations; the last: {case}, {rate:.2f}/s", file=sys.stderr, flush=True)


def proof(
    part: Annotated[
        list[str] | None, typer.Option(help="policy, pages, tail, adversarial, grid; default: all but grid")
    ] = None,
    requests: Annotated[int, typer.Option(help="requests of one simulation")] = 2000,
    seeds: Annotated[int, typer.Option(help="simulations of each case, with seeds 0, 1, ...")] = 5,
    workload: Annotated[
        list[str] | None, typer.Option(help="of the grid; default alpaca, azure-conv, azure-code, mooncake")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="write records and checks here")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="write PNG and SVG of the grid into this folder; needs matplotlib")
    ] = None,
) -> None:
    """The packhorse policy and packed pages against their targets, simulated; needs PACKHORSE_DATA. The grid takes more than an hour."""
    from bench.report import check_writable, write_json
    from bench.sim_plot import check_plot, write_plots
    from bench.sim_proof import ProofOptions, run_proof
    from bench.sim_proof_report import print_part

    lists = {"parts": part, "workload": workload}
    given: dict[str, Any] = {name: tuple(dict.fromkeys(values)) for name, values in lists.items() if values}
    with config_errors():
        options = ProofOptions(requests=requests, seeds=seeds, **given)
        for name, value in (("workload", workload), ("plot", plot)):
            if value and "grid" not in options.parts:
                raise ConfigError(f"--{name} has no effect without --part grid", param=name)
        if json:
            check_writable("json", json)
        if plot:
            check_plot(plot)
        console = table_console()
        result = run_proof(options, Notes(), lambda part: print_part(part, console))
        if json:
            write_json(json, result)
        if plot:
            write_plots(plot, {"records": [record for record in result["records"] if record["part"] == "grid"]})
