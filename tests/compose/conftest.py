"""compose.yaml brought up once for all tests of this folder, under a name and a port of its own, and gone afterwards."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
IMAGE = "packhorse:test"
BASE = "python:3.11-slim-bookworm"
BUILD_SECONDS = 1800
UP_SECONDS = 300
COMMAND_SECONDS = 120


def call(*argv: str, seconds: float = COMMAND_SECONDS, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False, **options)


def unavailable() -> str | None:
    """Why compose cannot run on this machine, or None."""
    if shutil.which("docker") is None:
        return "there is no docker command"
    engine = call("docker", "version", "--format", "{{.Server.Version}}", seconds=20)
    if engine.returncode:
        return f"no Docker engine answers: {engine.stderr.strip().splitlines()[-1:]}"
    if compose_command() is None:
        return "there is neither `docker compose` nor docker-compose"
    if call("docker", "image", "inspect", BASE).returncode and call("docker", "pull", BASE, seconds=600).returncode:
        return f"the base image {BASE} is not here and cannot be pulled"
    return None


def compose_command() -> list[str] | None:
    if call("docker", "compose", "version", seconds=20).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


class Stack:
    """One compose project. `url` is its gateway's; `files` and `settings` are what compose gets."""

    def __init__(self, env_file: Path) -> None:
        self.project = f"packhorse-test-{uuid.uuid4().hex[:8]}"
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._env_file = env_file
        self.files = ["compose.yaml"]
        self.settings = {"PACKHORSE_PORT": str(self._port), "PACKHORSE_IMAGE": IMAGE, "PACKHORSE_THREADS": "1"}

    def compose(self, *arguments: str, seconds: float = COMMAND_SECONDS) -> str:
        """Runs compose and returns its output; fails the test with what it printed."""
        files = [text for file in self.files for text in ("--file", file)]
        base = [*(compose_command() or []), *files, "--project-name", self.project, "--env-file", str(self._env_file)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PACKHORSE_", "UCX_"))}
        done = call(*base, *arguments, seconds=seconds, cwd=ROOT, env=environment | self.settings)
        assert done.returncode == 0, f"compose {' '.join(arguments)}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def up(self, **scale: int) -> None:
        scales = [text for name, count in scale.items() for text in ("--scale", f"{name}={count}")]
        self.compose("up", "--detach", *scales, seconds=UP_SECONDS)

    def containers(self, service: str) -> list[str]:
        return self._list("ps", "--filter", f"label=com.docker.compose.service={service}")

    def inspect(self, container: str, form: str) -> str:
        return call("docker", "inspect", "--format", form, container).stdout.strip()

    def left(self) -> dict[str, list[str]]:
        """What of the project exists, by kind, stopped containers included."""
        kinds = {"containers": ("ps", "--all"), "networks": ("network", "ls"), "volumes": ("volume", "ls")}
        return {kind: found for kind, command in kinds.items() if (found := self._list(*command))}

    def _list(self, *command: str) -> list[str]:
        project = f"label=com.docker.compose.project={self.project}"
        return call("docker", *command, "--quiet", "--filter", project).stdout.split()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as response:
            return json.load(response)

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            with error:
                answer = error.read().decode(errors="replace")
            logs = self.compose("logs", "--tail", "20", "--no-color")
            raise AssertionError(f"{path}: {error.code} {answer}\n{logs}") from None

    def workers(self) -> dict[str, int]:
        """Registered workers by role as /health has them; empty while the gateway does not answer or is not ready."""
        try:
            return dict(self.get("/health")["workers"])
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            pass
        return {}

    def wait_for(self, what: str, holds: Callable[[], bool], seconds: float = UP_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                logs = self.compose("logs", "--tail", "30", "--no-color")
                raise AssertionError(f"{what}: not within {seconds:g} s; {self.workers()}\n{logs}")
            time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(stack: Stack, workers: dict[str, int]) -> Iterator[Stack]:
    """The stack built and up inside, with `workers` by role; fails at the end if a container, network or volume of it is left."""
    stack.compose("build", seconds=BUILD_SECONDS)
    try:
        stack.up()
        stack.wait_for(f"workers: {workers}", lambda: stack.workers() == workers)
        yield stack
    finally:
        stack.compose("down", "--volumes", "--remove-orphans")
    assert stack.left() == {}


@pytest.fixture(scope="session")
def env_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty .env, where there is an engine to use it; else the test is skipped."""
    if reason := unavailable():
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("compose") / "empty.env"
    path.touch()
    return path


@pytest.fixture(scope="session")
def stack(env_file: Path) -> Iterator[Stack]:
    """compose.yaml alone: one worker of each role."""
    with running(Stack(env_file), {"prefill": 1, "decode": 1}) as stack:
        yield stack
