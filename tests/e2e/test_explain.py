"""`packhorse explain` against a real cluster: from the id that a client sees to how its job was scheduled."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from typer.testing import CliRunner, Result

from packhorse.cli import app
from packhorse.client import ServerError
from packhorse.launcher import ClusterConfig, LocalCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        ClusterConfig(port=0, policy="packhorse", placement="predicted", predictor="learned", threads=1)
    ) as cluster:
        yield cluster


def explain(cluster: LocalCluster, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["explain", "--url", cluster.url, *arguments])


def complete(cluster: LocalCluster, **fields: object) -> str:
    """The id of a completion of 12 tokens for each choice."""
    request = {"model": "embedded", "prompt": "Once upon a time", "max_tokens": 12, "ignore_eos": True} | fields
    answer = httpx.post(f"{cluster.url}/v1/completions", json=request, timeout=60.0).raise_for_status()
    return str(answer.json()["id"])


def test_from_a_completion_to_its_job(cluster: LocalCluster) -> None:
    done = explain(cluster, complete(cluster))
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].endswith("-0: done, 12 tokens of output")
    said = {line.split()[0]: line for line in lines[1:]}
    assert "at most 12 of output" in said["asked"]
    assert "tokens of output, by " in said["predicted"]
    assert "policy packhorse, placement predicted" in said["by"]
    assert "on prefill-0" in said["placed"]
    assert "decode-0" in said["placed"]
    assert "transfer" in said["why"]
    assert "expected" in said["took"]


def test_every_choice_has_a_job_and_the_newest_come_first(cluster: LocalCluster) -> None:
    completion_id = complete(cluster, n=3)
    jobs = json.loads(explain(cluster, completion_id, "--json").stdout)
    assert {job["job_id"] for job in jobs} == {f"{completion_id}-{choice}" for choice in range(3)}
    assert all(job["outcome"] == "done" and job["output_tokens"] == 12 for job in jobs)
    newest = explain(cluster, "--last", "2").stdout.splitlines()
    assert [line.split()[0] for line in newest] == [f"{completion_id}-2", f"{completion_id}-1"]


def test_an_unknown_job_is_named(cluster: LocalCluster) -> None:
    done = explain(cluster, "cmpl-nobody")
    assert isinstance(done.exception, ServerError)
    assert "'cmpl-nobody' is not among the newest jobs" in str(done.exception)
