"""`packhorse explain`: how a running server scheduled its jobs, in words. Knows nothing of how the scheduler decides."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from packhorse.client import get_json, open_client
from packhorse.errors import ConfigError

Job = Mapping[str, Any]


def explain(url: str, job_id: str | None, last: int | None, api_key: str | None, *, as_json: bool) -> int:
    """Prints the jobs of that id, or the newest. Raises ConfigError for both, neither or what is no id, ServerError as the server says."""
    if (job_id is None) == (last is None):
        raise ConfigError("explain takes a job's id, or --last: one of them")
    if job_id is not None and not re.fullmatch(r"[\w-]+", job_id):  # another one would name another path
        raise ConfigError(f"job={job_id!r}: an id has letters, digits, _ and - alone")
    path = f"/v1/jobs/{quote(job_id, safe='')}" if job_id is not None else f"/v1/jobs?last={last}"
    with open_client(url, api_key) as client:
        jobs: Sequence[Job] = get_json(client, path)["data"]
    if as_json:
        print(json.dumps(jobs, indent=2))
    elif job_id is not None:
        print("\n\n".join("\n".join(described(job)) for job in jobs))
    else:
        print("\n".join(in_a_line(job) for job in jobs) or "no jobs yet")
    return 0


def described(job: Job) -> Iterator[str]:
    """The lines that tell of one job."""
    yield f"{job['job_id']}: {_fate(job)}"
    yield _row("asked", _asked(job))
    if job["predicted_tokens"]:
        yield _row("predicted", _lengths(job, "predicted_tokens", f"by {job['predicted_by']}"))
    if job["current_tokens"]:
        scores = " and scores of its hidden state" if job["refined"] else ""
        yield _row("now", _lengths(job, "current_tokens", f"given the {job['generated_tokens']} so far{scores}"))
    if job["policy"]:
        yield _row("by", f"policy {job['policy']}, placement {job['placement']}")
    if job["queue_seconds"] is not None:
        yield _row(
            "placed", f"{_pair(job)}, after {job['queue_seconds']:.3f} s in the queue; {job['pages']} pages reserved"
        )
    if job["why"]:
        yield _row("why", job["why"])
    if job["took_seconds"] is not None:
        expected = f", {job['expected_seconds']:.3f} s expected" if job["expected_seconds"] else ""
        yield _row("took", f"{job['took_seconds']:.3f} s from placement to end{expected}")
    if job["preemptions"]:
        yield _row("preempted", "; ".join([f"{job['preemptions']} x", *map(_eviction, job["evictions"])]))


def in_a_line(job: Job) -> str:
    queue = "not placed" if job["queue_seconds"] is None else f"{_pair(job)} after {job['queue_seconds']:.3f} s"
    return f"{job['job_id']}  {_fate(job)}; predicted {_median(job)}; {queue}"


def _fate(job: Job) -> str:
    """done, 57 tokens of output | decoding, 12 tokens so far | failed:overloaded: why"""
    if job["outcome"] == "done":
        return f"done, {job['output_tokens']} tokens of output"
    if job["outcome"]:
        return f"{job['outcome']}: {job['error']}" if job["error"] else str(job["outcome"])
    return f"{job['stage']}, {job['generated_tokens']} tokens so far"


def _asked(job: Job) -> str:
    within = f", token 1 within {job['max_ttft_seconds']:g} s" if job["max_ttft_seconds"] is not None else ""
    return f"{job['prompt_tokens']} prompt tokens, at most {job['max_tokens']} of output, priority {job['priority']}{within}"


def _eviction(eviction: Job) -> str:
    """to host memory at 57 tokens (0.004 s both ways, 0.210 s to compute again)"""
    way = "to host memory" if eviction["way"] == "swap" else "dropped"
    swap = "no room there" if eviction["swap_seconds"] is None else f"{eviction['swap_seconds']:.3f} s both ways"
    return f"{way} at {eviction['generated_tokens']} tokens ({swap}, {eviction['drop_seconds']:.3f} s to compute again)"


def _lengths(job: Job, name: str, why: str) -> str:
    """40 tokens of output, by retrieval (10 %: 10, 25 %: 20, 50 %: 40, 75 %: 50, 90 %: 64)"""
    at = dict(zip(job["levels"], job[name], strict=True))
    quantiles = ", ".join(f"{100 * level:.0f} %: {tokens:.0f}" for level, tokens in at.items())
    return f"{at[0.5]:.0f} tokens of output, {why} ({quantiles})"


def _median(job: Job) -> str:
    at = dict(zip(job["levels"], job["predicted_tokens"], strict=True))
    return f"{at[0.5]:.0f}" if at else "nothing"


def _pair(job: Job) -> str:
    return f"on {job['prefill_worker']} and {job['decode_worker'] or 'no decode worker'}"


def _row(name: str, text: str) -> str:
    return f"  {name:<10} {text}"
