"""The described cluster: a YAML file of machines with their GPUs and NICs.

link: zmq                       # how pages travel: zmq, tcp or ucx
machines:
  - {name: a, gpu: A100-80GB, gpus: 8, nic_gbps: 400}
  - {name: t, gpu: T4, gpus: 4, count: 3}        # t-0, t-1, t-2; the NIC of the typical cloud instance
devices: {}                     # GPUs that are not in devices.json, with the same fields
assumptions: {}                 # any field of assumptions.py
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from packhorse.errors import ConfigError

from .assumptions import Assumptions
from .devices import Device, known_devices
from .yaml_file import read_model

MAX_GPUS = 16
MAX_MACHINES = 1000


class MachineEntry(BaseModel):
    """One machine, or `count` alike, which are then called name-0, name-1, ..."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$")
    gpu: str
    gpus: int = Field(ge=1, le=MAX_GPUS)
    nic_gbps: float | None = Field(default=None, gt=0, description="default: the typical cloud instance's")
    host: str | None = Field(default=None, description="address of the machine; default: its name")
    count: int = Field(default=1, ge=1, le=MAX_MACHINES)

    @model_validator(mode="after")
    def _one_host_each(self) -> Self:
        if self.host is not None and self.count > 1:
            raise ValueError(f"{self.name}: count={self.count} machines cannot share host={self.host!r}")
        return self


class ClusterFile(BaseModel):
    """The file's fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    link: Literal["zmq", "tcp", "ucx"] = "zmq"
    machines: tuple[MachineEntry, ...] = Field(min_length=1)
    devices: dict[str, Device] = Field(default_factory=dict)
    assumptions: Assumptions = Assumptions()


@dataclass(frozen=True)
class Machine:
    """One machine. Machines of equal `kind` may be exchanged for each other."""

    name: str
    host: str
    gpu: str
    device: Device
    gpus: int
    nic_gbps: float
    assume: Assumptions = field(default_factory=Assumptions)

    @property
    def kind(self) -> tuple[str, int, float]:
        return self.gpu, self.gpus, self.nic_gbps


@dataclass(frozen=True)
class Cluster:
    machines: tuple[Machine, ...]
    link: Literal["zmq", "tcp", "ucx"] = "zmq"

    @property
    def num_gpus(self) -> int:
        return sum(machine.gpus for machine in self.machines)


def load_cluster(path: Path) -> Cluster:
    """The cluster in a file. Raises ConfigError that names the file, the field and what is allowed."""
    described = read_model(path, ClusterFile)
    known = known_devices() | described.devices
    machines = []
    for i, entry in enumerate(described.machines):
        if entry.gpu not in known:
            raise ConfigError(
                f"{path}: machines[{i}].gpu={entry.gpu!r} is unknown; allowed: {', '.join(sorted(known))}, "
                "or one that the file describes under devices"
            )
        machines += _expand(entry, known[entry.gpu], described.assumptions)
    if len(machines) > MAX_MACHINES:
        raise ConfigError(f"{path}: machines: {len(machines)} in all; at most {MAX_MACHINES} are planned for")
    names = [machine.name for machine in machines]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{path}: machines: the name {twice!r} is there twice")
    return Cluster(tuple(machines), described.link)


def _expand(entry: MachineEntry, device: Device, assume: Assumptions) -> list[Machine]:
    nic = entry.nic_gbps or device.typical_nic_gbps(entry.gpus)
    names = [entry.name] if entry.count == 1 else [f"{entry.name}-{i}" for i in range(entry.count)]
    return [Machine(name, entry.host or name, entry.gpu, device, entry.gpus, nic, assume) for name in names]
