"""Requests with a deadline of their own to token 1, against real processes whose decode worker has one place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import httpx
import pytest
from typer.testing import CliRunner

from packhorse.cli import app
from packhorse.launcher import ClusterConfig, LocalCluster
from tests.waiting import PATIENCE_SECONDS

CLIENTS = 6


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    config = ClusterConfig(port=0, policy="fcfs", predictor="none", threads=1)
    with LocalCluster(config, options={"decode": {"max_jobs": 1}}) as cluster:
        yield cluster


def request(**fields: object) -> dict[str, object]:
    return {"model": "embedded", "prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True} | fields


def post(cluster: LocalCluster, **fields: object) -> httpx.Response:
    return httpx.post(f"{cluster.url}/v1/completions", json=request(**fields), timeout=120.0)


@contextmanager
def busy(cluster: LocalCluster) -> Iterator[None]:
    """The place is taken inside, by a job that pauses until its client leaves afterwards."""
    paused = request(stream=True, tool_pause={"after_tokens": 5, "seconds": 600})
    with httpx.stream("POST", f"{cluster.url}/v1/completions", json=paused, timeout=60.0) as answer:
        lines = answer.iter_lines()  # which, let go of, would close the stream
        assert next(lines)
        yield


def until_refused(cluster: LocalCluster, **fields: object) -> httpx.Response:
    """The scheduler wants to have seen enough waiting before it predicts any."""
    deadline = time.monotonic() + 2 * PATIENCE_SECONDS
    while (answer := post(cluster, **fields)).status_code != 429:
        assert time.monotonic() < deadline, answer.text
    return answer


def error_of(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    return str(error["message"])


def test_who_still_waits_at_its_deadline_fails_and_says_so(cluster: LocalCluster) -> None:
    with busy(cluster):
        began = time.monotonic()
        answer = post(cluster, max_ttft_seconds=0.4)
        assert time.monotonic() - began >= 0.4
        assert "when its max_ttft_seconds=0.4 had passed" in error_of(answer, 504, "deadline_exceeded")
    told = CliRunner().invoke(app, ["explain", "--url", cluster.url, answer.headers["x-completion-id"]]).stdout
    assert "failed:deadline_exceeded" in told
    assert "token 1 within 0.4 s" in told
    assert post(cluster, max_ttft_seconds=60, max_tokens=5).status_code == 200


def test_who_is_predicted_to_miss_it_is_refused_at_once(cluster: LocalCluster) -> None:
    stop = Event()

    def keep_asking() -> set[int]:
        seen = set()
        while not stop.is_set():
            seen.add(post(cluster, max_tokens=60).status_code)
        return seen

    with ThreadPoolExecutor(CLIENTS) as pool:
        others = [pool.submit(keep_asking) for _ in range(CLIENTS)]
        answer = until_refused(cluster, max_ttft_seconds=0.05)
        stop.set()
        assert [other.result() for other in others] == [{200}] * CLIENTS
    assert "the job would wait for about" in error_of(answer, 429, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
