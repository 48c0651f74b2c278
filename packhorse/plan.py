"""`packhorse plan`: the best deployment of a described cluster, with reasons; --out writes it as a deployment file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packhorse.errors import ConfigError
from packhorse.options import flag, variable

if TYPE_CHECKING:
    from packhorse.deployment import Deployment, WorkerEntry
    from scheduler.planner import ModelShape, PlanResult
    from scheduler.planner.search import Assignment


def _option(name: str, text: str, **more: Any) -> Any:
    flags = more.pop("flags", (flag(name),))
    return typer.Option(*flags, envvar=variable(name), show_envvar=False, help=text, **more)


def plan(
    cluster: Annotated[Path, typer.Argument(metavar="CLUSTER.yaml", help="machines with their GPUs and NICs")],
    model: Annotated[str, _option("model", "a config.json, a model folder, a Hugging Face id, or 'embedded'")],
    workload: Annotated[
        str, _option("workload", "a trace (.csv, .jsonl), figures (.yaml), or PROMPT:OUTPUT in tokens")
    ],
    rate: Annotated[float | None, _option("rate", "requests per second asked for (default: the workload's)")] = None,
    slo_ttft: Annotated[float | None, _option("slo_ttft", "limit of the time to the first token, in seconds")] = None,
    slo_tpot: Annotated[float | None, _option("slo_tpot", "limit of the time per output token, in seconds")] = None,
    kv_formats: Annotated[
        str | None, _option("kv_formats", "formats to choose from, by commas (default: raw,k8v8,k4v4,k4v2)")
    ] = None,
    max_tp: Annotated[int, _option("max_tp", "highest tensor-parallel degree; 1 is what runs today", min=1)] = 16,
    as_json: Annotated[bool, _option("json", "print JSON")] = False,
    out: Annotated[Path | None, _option("out", "file to write the best plan to, as a deployment")] = None,
) -> None:
    """Plan a deployment of a cluster: what prefills, what decodes, in which tensor-parallel degree and KV format."""
    from scheduler.planner import DEFAULT_FORMATS, Slo, as_data, load_cluster, load_workload, render, search

    for name, value in (("--rate", rate), ("--slo-ttft", slo_ttft), ("--slo-tpot", slo_tpot)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name}={value:g} must be above 0, and finite")
    formats = tuple(kv_formats.split(",")) if kv_formats else DEFAULT_FORMATS
    found = search(
        load_cluster(cluster), _shape(model), load_workload(workload, rate), Slo(slo_ttft, slo_tpot), formats, max_tp
    )
    print(json.dumps(as_data(found), indent=2, allow_nan=False) if as_json else render(found))
    if out is not None:
        from packhorse.deployment import write_deployment

        comment = f"packhorse plan {cluster} --model {model} --workload {workload}\n\n{render(found)}"
        write_deployment(deployment_of(found, model), out, comment)


def deployment_of(found: PlanResult, model: str) -> Deployment:
    """The best plan as a deployment; scheduler and gateway run on the first machine.

    All values are float16 where a GPU has no bfloat16, since raw pages and residuals must have one type everywhere.
    """
    from packhorse.deployment import Deployment, GatewayEntry, MachineEntry, SchedulerEntry

    first = found.cluster.machines[0].name
    given = {assignment.machine.name: assignment for assignment in found.best.assignments}
    machines = tuple(
        MachineEntry(
            name=machine.name,
            host=machine.host,
            gpu=machine.gpu,
            processes=tuple(_workers(given[machine.name], found)),
        )
        for machine in found.cluster.machines
    )
    return Deployment(
        model=model,
        dtype="auto" if all(machine.device.bf16 for machine in found.cluster.machines) else "float16",
        kv_format=found.best.kv_format,
        link=found.cluster.link,
        scheduler=SchedulerEntry(machine=first),
        gateway=GatewayEntry(machine=first),
        machines=machines,
    )


def _workers(given: Assignment, found: PlanResult) -> list[WorkerEntry]:
    """The machine's processes, devices in order: prefill first."""
    from packhorse.deployment import WorkerEntry

    option, machine, entries = given.option, given.machine, list[WorkerEntry]()
    free = iter(range(machine.gpus))
    for role, count, tp in (
        ("prefill", option.prefills, option.prefill_tp),
        ("decode", option.decodes, option.decode_tp),
    ):
        for number in range(count):
            devices = tuple(f"cuda:{next(free)}" for _ in range(tp))
            name = f"{machine.name}-{role}-{number}"
            fields: dict[str, object] = {"name": name, "role": role, "devices": devices, "tp": tp}
            fields |= {"kv_format": found.best.kv_format, "link": found.cluster.link}
            fields["nic_gbps"] = round(machine.nic_gbps / (option.prefills + option.decodes), 3)
            if role == "decode" and option.decode:
                fields |= {"max_jobs": option.decode.batch, "pool_bytes": option.decode.page_bytes}
            entries.append(WorkerEntry.model_validate(fields))
    return entries


def _shape(model: str) -> ModelShape:
    """Of a config.json by its path, or of anything that `--model` of a worker names."""
    from scheduler.planner import read_shape

    path = Path(model)
    if path.suffix == ".json":
        return read_shape(path)
    from model.source import find_model, model_name

    return read_shape(find_model(model, weights=False), model_name(model))
