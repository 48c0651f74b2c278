"""A deployment: which processes run on which machine, as a YAML file that `packhorse plan` writes.

    version: 1
    model: Qwen/Qwen3-8B
    kv_format: k4v2                      # one for all: the scheduler registers workers of one KV layout
    link: zmq
    scheduler: {machine: a, bind: null}  # addresses are filled in by whoever starts the processes; null: the default
    gateway: {machine: a, host: null, port: null}
    machines:
      - name: a
        host: 10.0.0.1
        processes:
          - {name: a-prefill-0, role: prefill, devices: ["cuda:0"], nic_gbps: 50}
          - {name: a-decode-0, role: decode, devices: ["cuda:1"], max_jobs: 68, pool_bytes: 3459000000, data_bind: null}

Fields of processes are those of packhorse/config.py. `tp` is the number of a process's devices. Plans may have tp above 1; workers
that run on several devices are not built, so `load_deployment` refuses them unless told otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from packhorse.config import DtypeName, build
from packhorse.errors import ConfigError
from packhorse.launcher import ClusterConfig, UpConfig
from packhorse.options import flag
from scheduler.planner.yaml_file import read_model

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
_DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class WorkerEntry(_Part):
    """One worker process. `nic_gbps` and below: as in packhorse/config.py, None for its default."""

    name: str = Field(pattern=_NAME)
    role: Literal["prefill", "decode"]
    devices: tuple[Annotated[str, Field(pattern=_DEVICE)], ...] = Field(default=("auto",), min_length=1)
    tp: int = Field(default=0, ge=0, description="0: the number of devices")
    kv_format: str | None = Field(
        default=None, pattern=r"^(raw|k[248]v[248])$", description="default: the deployment's"
    )
    link: Literal["zmq", "tcp", "ucx"] | None = Field(default=None, description="default: the deployment's")
    nic_gbps: float | None = Field(default=None, gt=0)
    max_jobs: int | None = Field(default=None, ge=1)
    pool_bytes: int | None = Field(default=None, ge=1)
    data_bind: str | None = Field(default=None, pattern=r"^.+:\d+$")
    advertise: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.tp not in (0, len(self.devices)):
            raise ValueError(f"{self.name}: tp={self.tp} does not fit its {len(self.devices)} devices")
        if self.role == "prefill":
            given = [name for name in ("pool_bytes", "data_bind", "advertise") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{self.name}: {given[0]} is a field of decode workers alone")
        return self


class MachineEntry(_Part):
    name: str = Field(pattern=_NAME)
    host: str | None = Field(default=None, description="address; default: the name")
    gpu: str = ""
    processes: tuple[WorkerEntry, ...] = ()

    @model_validator(mode="after")
    def _devices_once(self) -> Self:
        counts = Counter(device for process in self.processes for device in process.devices if ":" in device)
        shared = next((device for device, count in counts.items() if count > 1), None)
        if shared:
            raise ValueError(f"{self.name}: device {shared!r} is given to {counts[shared]} processes")
        return self


class SchedulerEntry(_Part):
    machine: str
    bind: str | None = None


class GatewayEntry(_Part):
    machine: str
    host: str | None = None
    port: int | None = Field(default=None, ge=0, le=65535)
    token_bind: str | None = None
    advertise: str | None = None


class Deployment(_Part):
    """The whole file. At least one worker of each role, unique names, one KV format and one link."""

    version: Literal[1] = 1
    model: str
    served_name: str | None = None
    dtype: DtypeName = "auto"
    kv_format: str = Field(pattern=r"^(raw|k[248]v[248])$")
    link: Literal["zmq", "tcp", "ucx"] = "zmq"
    scheduler: SchedulerEntry
    gateway: GatewayEntry
    machines: tuple[MachineEntry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        machines = {machine.name for machine in self.machines}
        names = Counter([*(m.name for m in self.machines), *(worker.name for worker in self.workers())])
        twice = next((name for name, count in names.items() if count > 1), None)
        if twice:
            raise ValueError(f"the name {twice!r} is there twice")
        for part, entry in (("scheduler", self.scheduler), ("gateway", self.gateway)):
            if entry.machine not in machines:
                raise ValueError(
                    f"{part}.machine={entry.machine!r} is no machine; allowed: {', '.join(sorted(machines))}"
                )
        for role in ("prefill", "decode"):
            if not any(worker.role == role for worker in self.workers()):
                raise ValueError(f"there is no {role} worker")
        for worker in self.workers():
            for name in ("kv_format", "link"):
                own, common = getattr(worker, name), getattr(self, name)
                if own not in (None, common):
                    raise ValueError(
                        f"{worker.name}: {name}={own!r} differs from the deployment's {common!r}; workers must agree"
                    )
        return self

    def workers(self) -> Iterator[WorkerEntry]:
        return (worker for machine in self.machines for worker in machine.processes)


def load_deployment(path: Path, *, allow_tensor_parallel: bool = False) -> Deployment:
    """The deployment in a file. Raises ConfigError that names the file, the field and what is allowed.

    Also for workers on several devices, which can be planned but not run yet, unless they are allowed.
    """
    found = read_model(path, Deployment)
    wide = next((worker for worker in found.workers() if len(worker.devices) > 1), None)
    if wide and not allow_tensor_parallel:
        raise ConfigError(
            f"{path}: {wide.name} has tp={len(wide.devices)} ({', '.join(wide.devices)}); workers run on one device each so far. "
            "Plan with --max-tp 1"
        )
    return found


def write_deployment(deployment: Deployment, path: Path, comment: str = "") -> None:
    """Writes the file, with `comment` above. Raises ConfigError where it cannot be written."""
    text = yaml.dump(_layout(deployment), Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=200)
    head = "".join(f"# {line}\n" if line else "#\n" for line in comment.splitlines())
    try:
        path.write_text(head + text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", param="out") from error


FIELDS_OF_FILE = frozenset(
    ("model", "served_name", "dtype", "device", "kv_format", "link", "host", "port", "prefill", "decode")
)


class _Line(dict[str, Any]):
    """A mapping that is written on one line."""


_Dumper = type("_Dumper", (yaml.SafeDumper,), {})
yaml.add_representer(
    _Line, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=True), Dumper=_Dumper
)


def _layout(deployment: Deployment) -> dict[str, Any]:
    """The file's data: a line per process, without fields that are None, but with the addresses that are left to fill in."""
    data = deployment.model_dump(mode="json")
    data = {name: value for name, value in data.items() if value is not None}
    data["scheduler"], data["gateway"] = _Line(data["scheduler"]), _Line(data["gateway"])
    for machine in data["machines"]:
        machine["processes"] = [_Line(_given(process)) for process in machine["processes"]]
    return data


def _given(process: dict[str, Any]) -> dict[str, Any]:
    addresses = ("data_bind", "advertise") if process["role"] == "decode" else ()
    return {name: value for name, value in process.items() if value is not None or name in addresses}


def machine_of_workers(deployment: Deployment) -> MachineEntry:
    """The only machine with workers. Raises ConfigError where there are several, or workers on several devices."""
    used = [machine for machine in deployment.machines if machine.processes]
    if len(used) > 1:
        names = ", ".join(machine.name for machine in used)
        raise ConfigError(f"the deployment has workers on {names}; `up` and `compose` serve one machine")
    for worker in used[0].processes:
        if len(worker.devices) > 1:
            raise ConfigError(f"{worker.name} has tp={len(worker.devices)}; workers run on one device each so far")
    return used[0]


@dataclass(frozen=True)
class LocalDeployment:
    """What a LocalCluster needs: its configuration, and fields of each worker by the launcher's name for it (prefill-0, ...)."""

    config: ClusterConfig
    workers: dict[str, dict[str, Any]]


def local_cluster(config: UpConfig) -> LocalDeployment:
    """What `packhorse up` is to run: its deployment file if it names one, else its flags. Raises ConfigError.

    A flag for something that the file says is refused: nobody could tell which of the two counts.
    """
    if config.deployment is None:
        return LocalDeployment(config, {})
    in_file = config.model_fields_set & FIELDS_OF_FILE
    if in_file:
        raise ConfigError(f"{', '.join(sorted(map(flag, in_file)))}: the deployment file {config.deployment} says that")
    settings = {name: getattr(config, name) for name in config.model_fields_set - {"deployment"}}
    return local_cluster_from(load_deployment(config.deployment), **settings)


def _check_launched(deployment: Deployment) -> None:
    """`up` joins its processes by free loopback ports."""
    scheduler, gateway = deployment.scheduler, deployment.gateway
    chosen = {
        "scheduler.bind": scheduler.bind,
        "gateway.token_bind": gateway.token_bind,
        "gateway.advertise": gateway.advertise,
    }
    for name, value in chosen.items():
        if value is not None:
            raise ConfigError(
                f"{name}={value!r}: `packhorse up` joins its processes on this machine by itself; allowed: null"
            )


def local_cluster_from(deployment: Deployment, **settings: Any) -> LocalDeployment:
    """The deployment on this machine alone. `settings` are fields of ClusterConfig that the file does not have, such as api_key.

    Raises ConfigError for workers on more than one machine or on several devices, and for addresses that are the launcher's to choose.
    """
    _check_launched(deployment)
    workers: dict[str, dict[str, Any]] = {}
    numbers: Counter[str] = Counter()
    for worker in machine_of_workers(deployment).processes:
        fields = {
            name: getattr(worker, name) for name in ("nic_gbps", "max_jobs", "pool_bytes", "data_bind", "advertise")
        }
        given = {name: value for name, value in fields.items() if value is not None}
        workers[f"{worker.role}-{numbers[worker.role]}"] = {"device": worker.devices[0], **given}
        numbers[worker.role] += 1
    gateway = {name: getattr(deployment.gateway, name) for name in ("host", "port")}
    common = {name: getattr(deployment, name) for name in ("model", "served_name", "dtype", "kv_format", "link")}
    given = {name: value for name, value in {**common, **gateway}.items() if value is not None}
    counts = {"prefill": numbers["prefill"], "decode": numbers["decode"]}
    config = build(ClusterConfig, {**given, **counts, **settings})
    return LocalDeployment(config, workers)
