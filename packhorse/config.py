"""One frozen configuration per process, checked on construction; flags, environment variables and compose use these names.

`PACKHORSE_<NAME>` is the variable of field `<name>`. Addresses of the control plane are ZeroMQ's (tcp://host:port);
the data plane's carry the link's scheme (zmq://host:port). This file knows nothing of how processes are launched.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from packhorse.errors import ConfigError

LinkName = Literal["inproc", "tcp", "zmq", "ucx"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
DEFAULT_KV_FORMAT = "k4v2"
DEFAULT_CONTROL = "tcp://127.0.0.1:5600"
MAX_PORT = 65535


def check_port(address: str) -> str:
    """For validators: the address, whose port is a possible one. Raises ValueError. (ZeroMQ binds 99999 as 34463.)"""
    port = address.rpartition(":")[2]
    if port.isdecimal() and int(port) > MAX_PORT:
        raise ValueError(f"port {port} is greater than {MAX_PORT}")
    return address


def check_control(address: str) -> str:
    """For validators: an address of the control or the token plane. Raises ValueError."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    is_tcp = address.startswith("tcp://") and host and (port.isdecimal() or port == "*")
    if not is_tcp and not address.startswith("ipc://"):
        raise ValueError("must be tcp://host:port")
    return check_port(address)


ControlAddress = Annotated[str, AfterValidator(check_control)]
DataAddress = Annotated[str, Field(pattern=r"^.+:\d+$"), AfterValidator(check_port)]


class ProcessConfig(BaseModel):
    """What every process has. `secret` guards the internal planes; it is required for any bind that is not loopback."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret: SecretStr | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def secret_bytes(self) -> bytes | None:
        return self.secret.get_secret_value().encode() if self.secret else None


class SchedulerConfig(ProcessConfig):
    """Deadlines are per job state: no job stays in one longer than that. SchedulerCore checks the names against its registries."""

    bind: ControlAddress = DEFAULT_CONTROL
    policy: str = "packhorse"
    placement: str = "predicted"
    predictor: str = Field(default="learned", description="what predicts output lengths, or none")
    predictor_file: str | None = None
    embedding: str | None = None
    embedding_tokenizer: str | None = None
    max_queue: int = Field(default=1024, ge=1)
    queue_seconds: float = Field(default=120.0, gt=0)
    shed: bool = Field(default=True, description="refuse jobs that are predicted to miss a deadline in the queue")
    shed_ttft_seconds: float | None = Field(default=None, gt=0, description="also those whose token 1 would be later")
    reserve_seconds: float = Field(default=10.0, gt=0)
    prefill_seconds: float = Field(default=300.0, gt=0)
    decode_seconds: float = Field(default=3600.0, gt=0)
    release_seconds: float = Field(default=10.0, gt=0)
    heartbeat_seconds: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    worker_timeout_seconds: float = Field(default=5.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _timeout_covers_heartbeats(self) -> Self:
        if self.worker_timeout_seconds < 2 * self.heartbeat_seconds:
            raise ValueError(
                f"worker_timeout_seconds={self.worker_timeout_seconds} must be at least twice heartbeat_seconds={self.heartbeat_seconds}"
            )
        return self

    @model_validator(mode="after")
    def _predictor_has_what_it_needs(self) -> Self:
        check_predictor(self.predictor, self.predictor_file, self.embedding, self.embedding_tokenizer)
        return self


class GatewayConfig(ProcessConfig):
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=MAX_PORT)
    scheduler: ControlAddress = DEFAULT_CONTROL
    token_bind: ControlAddress = "tcp://127.0.0.1:0"
    advertise: str | None = Field(
        default=None, description="host at which workers reach token_bind; default: the bound one"
    )
    model: str = "embedded"
    served_name: str | None = None
    api_key: SecretStr | None = None
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    drain_seconds: float = Field(default=10.0, ge=0)


class WorkerConfig(ProcessConfig):
    worker_id: str = Field(default="", pattern=r"^[A-Za-z0-9_.:-]{0,64}$")
    scheduler: ControlAddress = DEFAULT_CONTROL
    model: str = "embedded"
    dtype: DtypeName = "auto"
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    kv_format: str = Field(default=DEFAULT_KV_FORMAT, pattern=r"^(raw|k[248]v[248])$")
    link: LinkName = "zmq"
    threads: int | None = Field(default=None, ge=1)
    nic_gbps: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="this worker's share of its machine's network, as first guess",
    )


class PrefillConfig(WorkerConfig):
    chunk_tokens: int = Field(default=512, ge=1)
    max_jobs: int = Field(default=4, ge=1)
    lease_bytes: int = Field(
        default=1 << 30, ge=1, description="most bytes of unacknowledged pages before prefill pauses"
    )


class DecodeConfig(WorkerConfig):
    data_bind: DataAddress = "127.0.0.1:0"
    advertise: str | None = Field(default=None, description="host at which prefill workers reach data_bind")
    max_jobs: int = Field(default=32, ge=1)
    pool_pages: int | None = Field(default=None, ge=1)
    pool_bytes: int = Field(default=256 * 1024 * 1024, ge=1)
    prefix_cache: bool = Field(
        default=True, description="keep the pages of prompts, and use them for prompts that begin alike"
    )
    host_bytes: int = Field(
        default=256 * 1024 * 1024,
        ge=0,
        description="host memory for the pages of preempted jobs; with 0 they are dropped and computed again",
    )
    length_probe: str | None = None


AnyConfig = TypeVar("AnyConfig", bound=ProcessConfig)


def build(kind: type[AnyConfig], values: dict[str, Any]) -> AnyConfig:
    """A config of `kind`; raises ConfigError that names the field, its value and what is allowed."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or kind.__name__
        shown = "(hidden)" if name in ("secret", "api_key") else repr(first.get("input"))
        raise ConfigError(f"{name}={shown}: {first['msg']}" if first["loc"] else first["msg"], param=name) from error


def check_predictor(predictor: str, file: str | None, embedding: str | None, tokenizer: str | None) -> None:
    """For validators: what has a file learns, and an embedding reads text, which its tokenizer makes of token ids. Raises ValueError."""
    if predictor == "none" and file is not None:
        raise ValueError(f"predictor_file={file!r}: predictor none learns nothing that a file could keep")
    if (embedding is None) != (tokenizer is None):
        raise ValueError(f"embedding={embedding!r} and embedding_tokenizer={tokenizer!r} must be given together")


def default_worker_id(role: str) -> str:
    """`role`-host-pid: unique on one network."""
    return f"{role}-{socket.gethostname()}-{os.getpid()}"


def read_secret(path: Path) -> str:
    """The secret in a file, without surrounding white space; raises ConfigError when it is missing or empty."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"secret file {path}: {error.strerror}") from error
    if not text:
        raise ConfigError(f"secret file {path} is empty")
    return text
