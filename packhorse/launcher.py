"""A whole cluster on this machine: scheduler, gateway and workers as separate processes, on free loopback ports.

`packhorse up`, the demo, the terminal chat and the tests all use LocalCluster. Compose does not: there every process is a service.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, model_validator

from packhorse.child import Child, Report
from packhorse.config import DEFAULT_KV_FORMAT, DtypeName, ProcessConfig, check_predictor
from packhorse.errors import ConfigError, DeadlineError
from packhorse.options import flag, variable
from packhorse.supervisor import ChildError, Spec, Supervisor

Options = Mapping[str, Mapping[str, object]]
STOP_SECONDS = 15.0  # each of gateway, workers, scheduler; longer than a gateway drains
_POLL_SECONDS = 0.1
_HEALTH_SECONDS = 2.0
_GATEWAY, _WORKERS, _SCHEDULER = range(3)  # the order in which they are stopped


class ClusterConfig(ProcessConfig):
    """What `packhorse up` takes; every field that a component has under the same name is handed on."""

    model: str = "embedded"
    served_name: str | None = None
    dtype: DtypeName = "auto"
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    kv_format: str = Field(default=DEFAULT_KV_FORMAT, pattern=r"^(raw|k[248]v[248])$")
    prefill: int = Field(default=1, ge=1, le=64)
    decode: int = Field(default=1, ge=1, le=64)
    link: Literal["tcp", "zmq", "ucx"] = "zmq"
    policy: str = "packhorse"
    placement: str = "predicted"
    predictor: str = "learned"
    predictor_file: str | None = None
    embedding: str | None = None
    embedding_tokenizer: str | None = None
    length_probe: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    api_key: SecretStr | None = None
    prefix_cache: bool = Field(
        default=True, description="keep the pages of prompts, and use them for prompts that begin alike"
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads of each worker; default: cores // workers")
    restart: bool = True
    start_seconds: float = Field(default=120.0, gt=0)

    @model_validator(mode="after")
    def _predictor_has_what_it_needs(self) -> Self:
        check_predictor(self.predictor, self.predictor_file, self.embedding, self.embedding_tokenizer)
        return self


class UpConfig(ClusterConfig):
    """`packhorse up`: by flags, or as a deployment file says, which then holds all but the other fields here."""

    deployment: Path | None = Field(default=None, description="a deployment file of `packhorse plan --out`")


class DemoConfig(ClusterConfig):
    """As `packhorse up`, but two decode workers, any free port, and a death is an error."""

    decode: int = Field(default=2, ge=1, le=64)
    port: int = Field(default=0, ge=0, le=65535)
    restart: bool = False


def silent(name: str, line: str) -> None:
    """A report that drops the line; the children keep their last ones."""


class LocalCluster:
    """`with LocalCluster(config) as cluster`: everything is up and registered inside, and gone afterwards.

    `options` sets more fields of the configuration of a role, or of one process: {"decode": {"pool_pages": 8}}.
    `start` raises ConfigError for a port that is taken, ChildError with the last lines of a process that dies while
    starting, DeadlineError after `start_seconds`.
    """

    def __init__(self, config: ClusterConfig, *, options: Options | None = None, report: Report = silent) -> None:
        self.config = config
        self._options = options or {}
        self._report = report
        self._port, self._control_port = _ports(config.host, config.port)
        self._supervisor = Supervisor(self._specs(), report, restart=config.restart, stop_seconds=STOP_SECONDS)

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.config.host in ("0.0.0.0", "::") else self.config.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def processes(self) -> dict[str, Child]:
        """The newest process of each name: scheduler, gateway, prefill-0, ..., decode-0, ..."""
        return dict(self._supervisor.children)

    @property
    def lost(self) -> list[str]:
        """Names of processes that died and are not started again."""
        return list(self._supervisor.lost)

    def start(self) -> None:
        try:
            self._supervisor.start()
            self._wait_until_up()
            self._supervisor.settle()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stops the gateway, then the workers, then the scheduler; kills what does not end in time. Idempotent."""
        self._supervisor.stop()

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        self._supervisor.kill(name, number)

    def health(self) -> dict[str, Any] | None:
        """What GET /health says, whatever its status; None while nothing answers."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=_HEALTH_SECONDS)
        try:
            connection.request("GET", "/health")
            answer = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
        return answer if isinstance(answer, dict) else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + self.config.start_seconds
        while not self._complete(health := self.health()):
            self._supervisor.check()
            if time.monotonic() > deadline:
                limit = f"{self.config.start_seconds:g} s (--start-seconds)"
                raise DeadlineError(f"not everything came up in {limit}; /health says {health}")
            time.sleep(_POLL_SECONDS)

    def _complete(self, health: dict[str, Any] | None) -> bool:
        wanted = {"prefill": self.config.prefill, "decode": self.config.decode}
        registered = (health or {}).get("workers", {})
        return all(registered.get(role, 0) >= count for role, count in wanted.items())

    def _specs(self) -> list[Spec]:
        config = self.config
        threads = config.threads or max(1, cores() // (config.prefill + config.decode))
        control = f"tcp://127.0.0.1:{self._control_port}"
        given = _of(config, "model", "dtype", "device", "kv_format", "link")
        worker = {**given, "scheduler": control, "threads": threads}
        decode = worker | _of(config, "prefix_cache", "length_probe")
        gateway = {"scheduler": control, "host": config.host, "port": self._port, "model": config.model}
        gateway |= {"served_name": config.served_name}
        scheduler = _of(
            config, "policy", "placement", "predictor", "predictor_file", "embedding", "embedding_tokenizer"
        )
        scheduler |= {"bind": control}
        return [
            self._spec("scheduler", "scheduler", scheduler, _SCHEDULER),
            self._spec("gateway", "gateway", gateway, _GATEWAY),
            *(self._spec(f"prefill-{i}", "prefill", worker, _WORKERS, threads) for i in range(config.prefill)),
            *(self._spec(f"decode-{i}", "decode", decode, _WORKERS, threads) for i in range(config.decode)),
        ]

    def _spec(self, name: str, role: str, fields: Mapping[str, object], stage: int, threads: int = 1) -> Spec:
        fields = {**fields, "log_level": self.config.log_level}
        fields |= {**self._options.get(role, {}), **self._options.get(name, {})}
        flags = [text for key, value in fields.items() if value is not None for text in _arguments(key, value)]
        base = [sys.executable, "-P", "-m", "packhorse", role, *flags]

        def argv(starts: int) -> list[str]:
            if stage != _WORKERS:
                return base
            return [*base, "--worker-id", f"{name}.{starts}" if starts else name]

        return Spec(name, argv, self._environment(threads), stage)

    def _environment(self, threads: int) -> dict[str, str]:
        """Secrets travel by environment: a command line can be read by anybody on the machine."""
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        env.pop(variable("secret_file"), None)
        if self.config.secret:
            env[variable("secret")] = self.config.secret.get_secret_value()
        if self.config.api_key:
            env[variable("api_key")] = self.config.api_key.get_secret_value()
        return env


def _of(config: ClusterConfig, *names: str) -> dict[str, object]:
    return {name: getattr(config, name) for name in names}


def _arguments(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, bool):
        return (flag(name) if value else f"--no-{flag(name)[2:]}",)
    return flag(name), str(value)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ports(host: str, port: int) -> tuple[int, int]:
    """`port`, or a free one for 0, and another free one for the control plane. Raises ConfigError when `port` is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as public, socket.socket() as control:
        public.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            public.bind((host, port))
        except OSError as error:
            raise ConfigError(f"--host={host!r} --port={port}: {error.strerror or error}", param="port") from error
        control.bind(("127.0.0.1", 0))
        return int(public.getsockname()[1]), int(control.getsockname()[1])


__all__ = ["ChildError", "ClusterConfig", "DemoConfig", "LocalCluster", "UpConfig", "cores", "silent"]
