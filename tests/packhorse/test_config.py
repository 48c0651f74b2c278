"""What a configuration refuses, with the field, its value and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from packhorse.config import DecodeConfig, GatewayConfig, ProcessConfig, SchedulerConfig, build
from packhorse.errors import ConfigError


@pytest.mark.parametrize(
    "address", ["foo", "127.0.0.1:5600", "tcp://127.0.0.1", "tcp://:5600", "tcp://127.0.0.1:-1", "tcp://h:x", ""]
)
@pytest.mark.parametrize(
    ("kind", "field"), [(SchedulerConfig, "bind"), (GatewayConfig, "scheduler"), (GatewayConfig, "token_bind")]
)
def test_what_is_no_control_address(kind: type[ProcessConfig], field: str, address: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}='{address}': .*must be tcp://host:port"):
        build(kind, {field: address})


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:0", "tcp://[::1]:65535", "tcp://*:5600", "tcp://127.0.0.1:*", "ipc:///tmp/control"]
)
def test_control_addresses(address: str) -> None:
    assert build(SchedulerConfig, {"bind": address}).bind == address


@pytest.mark.parametrize(
    ("kind", "field", "address"),
    [
        (SchedulerConfig, "bind", "tcp://127.0.0.1:99999"),
        (GatewayConfig, "token_bind", "tcp://[::1]:65536"),
        (DecodeConfig, "scheduler", "tcp://127.0.0.1:99999"),
        (DecodeConfig, "data_bind", "127.0.0.1:99999"),
    ],
)
def test_a_port_that_is_none(kind: type[ProcessConfig], field: str, address: str) -> None:
    with pytest.raises(ConfigError, match=r"port \d+ is greater than 65535"):
        build(kind, {field: address})


@pytest.mark.parametrize(
    "values",
    [
        {"heartbeat_seconds": "inf", "worker_timeout_seconds": "inf"},
        {"worker_timeout_seconds": "inf"},
        {"queue_seconds": "nan"},
    ],
)
def test_a_silence_without_end_is_no_limit(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        build(SchedulerConfig, values)
