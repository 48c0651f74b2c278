"""`packhorse up`: a LocalCluster in the foreground, its logs on the terminal, until a signal."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from packhorse.deployment import local_cluster
from packhorse.launcher import LocalCluster, UpConfig

_NAME_WIDTH = 10
_CHECK_SECONDS = 0.5


def up(config: UpConfig) -> int:
    """Runs until SIGINT or SIGTERM; returns 0, or 1 when the gateway or the scheduler died for good."""
    local = local_cluster(config)
    with terminating():
        try:
            with LocalCluster(local.config, options=local.workers, report=Printer()) as cluster:
                print(_welcome(cluster), flush=True)
                while not {"gateway", "scheduler"} & set(cluster.lost):
                    time.sleep(_CHECK_SECONDS)
        except KeyboardInterrupt:
            return 0
    return 1


@contextmanager
def terminating() -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM raises KeyboardInterrupt; the second ends the process, and with it its children."""
    seen: list[int] = []

    def received(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) > 1:
            os._exit(128 + number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, received) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Printer:
    """A report for terminals: each line with the name of its process; the launcher's own lines stand out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loud = sys.stderr.isatty()

    def __call__(self, name: str, line: str) -> None:
        text = f"{name:<{_NAME_WIDTH}} | {line}"
        if self._loud and name == "packhorse":
            text = f"\x1b[1;31m{text}\x1b[0m"
        with self._lock:
            print(text, file=sys.stderr, flush=True)


def _welcome(cluster: LocalCluster) -> str:
    name = cluster.config.served_name or cluster.config.model
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Tell me a short story about a kite."}}]}}'
    key = " -H 'Authorization: Bearer <your key>'" if cluster.config.api_key else ""
    return f"""
Packhorse serves {name} at {cluster.url}/v1

  curl {cluster.url}/v1/chat/completions{key} -H 'Content-Type: application/json' \\
    -d '{body}'

  packhorse chat --url {cluster.url}

Ctrl-C stops everything."""
