"""The stack of compose.yaml on a real Docker engine: serves, scales, survives a killed worker, leaves nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.compose.conftest import Stack, call

pytestmark = [pytest.mark.compose, pytest.mark.timeout(2400)]

# Kills the decode process of the container that this runs in, not its init. Only the network namespace is surely its own.
KILL_WORKER = """
import os, signal
def mine(pid):
    try:
        same = os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net")
        program, *arguments = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0")
        return same and b"decode" in arguments and b"init" not in program
    except OSError:
        return False
[found] = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and mine(pid)]
os.kill(found, signal.SIGKILL)
"""


def complete(stack: Stack, stream: bool = False) -> bytes:
    model = stack.get("/v1/models")["data"][0]["id"]
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    return stack.post("/v1/completions", body | {"stream": stream})


def test_a_completion(stack: Stack) -> None:
    answer = json.loads(complete(stack))
    assert answer["usage"]["completion_tokens"] == 24
    assert answer["choices"][0]["text"].strip()


def test_a_streamed_completion_has_the_same_text(stack: Stack) -> None:
    lines = complete(stack, stream=True).decode().splitlines()
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    text = "".join(choice["text"] for event in events[:-1] for choice in json.loads(event)["choices"])
    assert text == json.loads(complete(stack))["choices"][0]["text"]


def test_every_process_is_healthy_and_none_is_root(stack: Stack) -> None:
    for service in ("scheduler", "gateway", "prefill", "decode"):
        [container] = stack.containers(service)
        stack.wait_for(
            f"{service} is healthy",
            lambda container=container: stack.inspect(container, "{{.State.Health.Status}}") == "healthy",
            seconds=60,
        )
        assert call("docker", "exec", container, "id", "-u").stdout.strip() == "10001"


def test_the_secret_is_for_the_processes_alone(stack: Stack) -> None:
    [container] = stack.containers("scheduler")
    mode = call("docker", "exec", container, "stat", "--format", "%a %U", "/run/packhorse/secret").stdout.strip()
    assert mode == "600 packhorse"
    environment = stack.inspect(container, "{{json .Config.Env}}")
    secret = call("docker", "exec", container, "cat", "/run/packhorse/secret").stdout.strip()
    assert len(secret) >= 32
    assert secret not in environment


def test_decode_scales_and_a_killed_worker_comes_back(stack: Stack) -> None:
    stack.up(decode=3)
    stack.wait_for("three decode workers", lambda: stack.workers() == {"prefill": 1, "decode": 3})
    victim = stack.containers("decode")[0]
    killed = call("docker", "exec", victim, "python", "-c", KILL_WORKER)
    assert killed.returncode == 0, killed.stderr
    stack.wait_for("a restart", lambda: stack.inspect(victim, "{{.RestartCount}}") == "1", seconds=60)
    stack.wait_for("three decode workers again", lambda: healthy(stack, victim) and stack.workers()["decode"] == 3)
    for _ in range(6):
        assert json.loads(complete(stack))["usage"]["completion_tokens"] == 24


def healthy(stack: Stack, container: str) -> bool:
    return stack.inspect(container, "{{.State.Health.Status}}") == "healthy"


def test_ucx_moves_pages_through_shared_memory(stack: Stack) -> None:
    stack.files.append("compose.ucx.yaml")
    stack.settings["UCX_LOG_LEVEL"] = "info"
    stack.up(decode=1)
    stack.wait_for("ucx workers", lambda: stack.workers() == {"prefill": 1, "decode": 1} and links(stack) == ["ucx"])
    assert json.loads(complete(stack))["usage"]["completion_tokens"] == 24
    lanes = re.findall(r"cfg#\d+ tag\((\w+)/", stack.compose("logs", "--no-color", "prefill", "decode"))
    assert lanes, "UCX did not say what it picked"
    assert set(lanes) <= {"sysv", "posix"}


def links(stack: Stack) -> list[str]:
    return list(stack.get("/health")["transport"])


def test_the_image_holds_no_more_than_it_needs(stack: Stack) -> None:
    [container] = stack.containers("gateway")
    names = call("docker", "exec", container, "ls", "-A", "/src").stdout.split()
    root = Path(__file__).parents[2]
    assert "tests" not in names
    assert ".git" not in names
    assert not [name for name in names if name.startswith(".") and (root / name).exists()]
