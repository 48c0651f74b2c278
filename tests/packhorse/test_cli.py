"""What a caller gets wrong is one line that names the flag or variable, its value and what is allowed; status 2, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from packhorse.config import DecodeConfig, GatewayConfig, PrefillConfig, SchedulerConfig
from packhorse.launcher import ClusterConfig, DemoConfig
from packhorse.options import config_command, flag

CONFIGS = (SchedulerConfig, GatewayConfig, PrefillConfig, DecodeConfig, ClusterConfig, DemoConfig)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refused command says."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith("packhorse: error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_bad_flag_is_named_with_its_value_and_what_is_allowed(packhorse) -> None:
    line = refused(packhorse("decode", "--kv-format", "k3v2"))
    assert "--kv-format='k3v2'" in line
    assert "raw, or k<bits>v<bits> with 2, 4 or 8 bits" in line


def test_a_bad_variable_is_named_with_its_value_and_what_is_allowed(packhorse) -> None:
    line = refused(packhorse("prefill", PACKHORSE_LINK="carrier-pigeon"))
    assert "PACKHORSE_LINK='carrier-pigeon'" in line
    assert "'tcp', 'zmq' or 'ucx'" in line


def test_a_flag_wins_over_its_variable(packhorse) -> None:
    assert "--port='flag'" in refused(packhorse("gateway", "--port", "flag", PACKHORSE_PORT="variable"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["up", "--decode", "0"], "--decode='0'"),
        (["up", "--link", "inproc"], "--link='inproc'"),
        (["up", "--device", "tpu"], "--device='tpu'"),
        (["demo", "--threads", "many"], "--threads='many'"),
        (["scheduler", "--heartbeat-seconds", "-1"], "--heartbeat-seconds='-1'"),
        (["scheduler", "--heartbeat-seconds", "5"], "at least twice heartbeat_seconds"),
        (["gateway", "--nonsense", "1"], "--nonsense"),
        (["nonsense"], "nonsense"),
        (["chat", "--max-tokens", "0"], "--max-tokens"),
    ],
)
def test_wrong_values_options_and_commands(packhorse, arguments: list[str], named: str) -> None:
    assert named in refused(packhorse(*arguments))


def test_a_secret_is_never_shown_nor_taken_by_flag(packhorse) -> None:
    assert "--secret" in refused(packhorse("up", "--secret", "hunter2"))
    assert "--secret-file" in packhorse("up", "--help").stdout


def test_a_missing_and_an_empty_secret_file(packhorse, tmp_path: Path) -> None:
    empty = tmp_path / "secret"
    empty.write_text(" \n")
    assert f"{tmp_path / 'missing'}: No such file" in refused(
        packhorse("up", "--secret-file", str(tmp_path / "missing"))
    )
    assert f"{empty} is empty" in refused(packhorse("up", PACKHORSE_SECRET_FILE=str(empty)))


def test_a_secret_arrives_by_file_and_by_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import typer

    seen: list[SchedulerConfig] = []
    app = typer.Typer()
    app.command()(config_command(SchedulerConfig, lambda config: seen.append(config)))
    path = tmp_path / "secret"
    path.write_text("from the file\n")
    monkeypatch.setenv("PACKHORSE_SECRET", "from the variable")
    app([], standalone_mode=False)
    app(["--secret-file", str(path)], standalone_mode=False)
    assert [config.secret_bytes for config in seen] == [b"from the variable", b"from the file"]


def test_a_port_in_use_is_said_before_anything_starts(packhorse) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"--port={port}: Address already in use" in refused(packhorse("up", "--port", port))


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_is_an_option_with_help(config: type) -> None:
    import inspect

    options = inspect.signature(config_command(config, lambda _: None)).parameters
    assert set(options) == set(config.model_fields) - {"secret"} | {"secret_file", "context"}


@pytest.mark.parametrize(
    "command", ["up", "gateway", "scheduler", "prefill", "decode", "chat", "demo", "doctor", "version"]
)
def test_every_command_has_help(packhorse, command: str) -> None:
    done = packhorse(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: packhorse {command}" in done.stdout


def test_help_shows_flags_and_defaults(packhorse) -> None:
    text = packhorse("up", "--help").stdout
    assert all(flag(name) in text for name in ClusterConfig.model_fields if name != "secret")
    assert "(default: 8000)" in text
    assert "--no-restart" in text


def test_without_a_command_help_is_shown(packhorse) -> None:
    done = packhorse()
    assert done.returncode == 0
    assert "Commands:" in done.stdout


def test_help_is_quick_and_imports_no_torch() -> None:
    code = "import sys; import packhorse.cli; print(sorted({'torch', 'transformers', 'zmq', 'fastapi'} & set(sys.modules)))"
    before = os.times()
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 3  # seconds of processor time; 0.2 on an idle machine


def test_version(packhorse) -> None:
    assert packhorse("version").stdout.startswith("packhorse 0.")
