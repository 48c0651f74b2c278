"""`packhorse compose`: a deployment file as an override of compose.yaml, with a service for each planned worker.

A worker's service is that of its role in compose.yaml (and in compose.ucx.yaml and compose.gpu.yaml, where it uses them) with what
was planned for it; the services `prefill` and `decode` themselves are scaled to 0. It knows the compose files as data alone:
nothing of Docker, nor of what the variables mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from packhorse.deployment import Deployment, WorkerEntry, load_deployment, machine_of_workers
from packhorse.errors import ConfigError
from packhorse.options import variable
from scheduler.planner.yaml_file import read_yaml

BASE, UCX, GPU = "compose.yaml", "compose.ucx.yaml", "compose.gpu.yaml"
ROLES = ("prefill", "decode")
Service = dict[str, Any]
# Writes everything out: what two services share is no alias.
_Dumper = type("_Dumper", (yaml.SafeDumper,), {"ignore_aliases": lambda self, data: True})


class ComposeOverride:
    """The override of one deployment over the compose files in `folder`. Raises ConfigError for what compose cannot do."""

    def __init__(self, deployment: Deployment, folder: Path) -> None:
        self.deployment = deployment
        self.machine = machine_of_workers(deployment)
        _check_addresses(deployment)
        self._files = {name: _services(folder / name) for name in self._names()}
        taken = {name for services in self._files.values() for name in services}
        if twice := next((worker.name for worker in self.machine.processes if worker.name in taken), None):
            raise ConfigError(f"the worker's name {twice!r} is a service of the compose files; allowed: any other")

    @property
    def files(self) -> list[str]:
        """The files of the project that this is an override of, in their order: compose.yaml and, for UCX, what owns its namespaces."""
        return [name for name in self._files if name != GPU]

    def data(self) -> dict[str, Any]:
        """What the file holds."""
        common = {"model": self.deployment.model, "served_name": self.deployment.served_name}
        gateway: Service = {"environment": _variables(common)}
        unplanned: dict[str, Service] = {role: {"scale": 0} for role in ROLES}
        workers = {worker.name: self._service(worker) for worker in self.machine.processes}
        return {"services": {"gateway": gateway, **unplanned, **workers}}

    def text(self, source: str, target: str) -> str:
        """The file: how it was made and is used, then its data."""
        given = " ".join(f"--file {name}" for name in [*self.files, target])
        head = f"# The workers of {source} on machine {self.machine.name}, by `packhorse compose`:\n# docker-compose {given} up\n"
        data: str = yaml.dump(self.data(), Dumper=_Dumper, sort_keys=False, width=150)
        return head + data

    def _names(self) -> list[str]:
        uses_gpu = any(_gpu(worker) for worker in self.machine.processes)
        return [BASE, *([UCX] if self.deployment.link == "ucx" else []), *([GPU] if uses_gpu else [])]

    def _service(self, worker: WorkerEntry) -> Service:
        service: Service = {}
        for name, services in self._files.items():
            if name != GPU or _gpu(worker):
                service = _merged(service, services[worker.role])
        planned = {name: getattr(self.deployment, name) for name in ("model", "dtype", "kv_format", "link")}
        planned |= {"worker_id": worker.name, "device": worker.devices[0]}
        planned |= {name: getattr(worker, name) for name in ("nic_gbps", "max_jobs", "pool_bytes")}
        if (index := _index(worker)) is not None and self.deployment.link != "ucx":
            _reservation(service).pop("count")
            _reservation(service)["device_ids"] = [index]
            planned["device"] = "cuda:0"  # the only one that it sees
        return _merged(service, {"environment": _variables(planned)})


def write_override(deployment: Path, folder: Path, out: Path | None) -> None:
    """Writes the override, or prints it. Raises ConfigError that names what is wrong."""
    override = ComposeOverride(load_deployment(deployment), folder)
    text = override.text(str(deployment), str(out or "FILE"))
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out}: {error.strerror}", param="out") from error


def _check_addresses(deployment: Deployment) -> None:
    """Addresses inside the project are those of compose.yaml; the gateway's port is published by variables of its own."""
    parts: dict[str, Any] = {"scheduler": deployment.scheduler, "gateway": deployment.gateway}
    parts |= {worker.name: worker for worker in deployment.workers()}
    for name, part in parts.items():
        for field in ("bind", "host", "port", "token_bind", "data_bind", "advertise"):
            if (value := getattr(part, field, None)) is not None:
                raise ConfigError(
                    f"{name}.{field}={value!r}: compose.yaml says that, and PACKHORSE_PUBLISH and PACKHORSE_PORT where clients connect; "
                    "allowed: null"
                )


def _services(path: Path) -> dict[str, Service]:
    data = read_yaml(path)
    services = data.get("services") if isinstance(data, dict) else None
    missing = [role for role in ROLES if not isinstance(services, dict) or not isinstance(services.get(role), dict)]
    if missing:
        raise ConfigError(f"{path}: has no service {missing[0]!r}; it is to be a compose file of Packhorse")
    return dict(data["services"])


def _merged(under: Service, over: Service) -> Service:
    """As compose merges files: mappings key by key, everything else replaced."""
    merged = deepcopy(under)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else deepcopy(value)
    return merged


def _variables(fields: Mapping[str, object]) -> dict[str, str]:
    """The fields that are given; `$` is doubled, or compose would see a variable."""
    return {variable(name): str(value).replace("$", "$$") for name, value in fields.items() if value is not None}


def _gpu(worker: WorkerEntry) -> bool:
    return worker.devices[0].startswith("cuda")


def _index(worker: WorkerEntry) -> str | None:
    """Of the GPU: "1" for cuda:1."""
    return worker.devices[0].partition(":")[2] or None


def _reservation(service: Service) -> dict[str, Any]:
    devices: list[dict[str, Any]] = service["deploy"]["resources"]["reservations"]["devices"]
    return devices[0]
