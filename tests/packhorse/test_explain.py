"""`packhorse explain`: what it says of a job, and what it refuses. The real thing is in tests/e2e."""

from __future__ import annotations

from typing import Any

import pytest

from packhorse.client import ServerError
from packhorse.errors import ConfigError
from packhorse.explain import described, explain, in_a_line
from transport.messages import Explanation

DONE = Explanation(
    job_id="cmpl-1-0", policy="packhorse", placement="predicted", prompt_tokens=30, max_tokens=64, pages=3,
    predicted_tokens=(10.0, 20.0, 40.0, 50.0, 64.0), levels=(0.1, 0.25, 0.5, 0.75, 0.9), predicted_by="retrieval",
    prefill_worker="prefill-0", decode_worker="decode-1", queue_seconds=0.125, expected_seconds=1.5,
    why="transfer 0.010 s", preemptions=2, outcome="done", took_seconds=1.75, output_tokens=57,
)  # fmt: skip


def told(job: Explanation) -> str:
    return "\n".join(described(job.model_dump(mode="json")))


def line(**changes: Any) -> str:
    return in_a_line(DONE.model_copy(update=changes).model_dump(mode="json"))


def test_all_that_is_known_is_said() -> None:
    assert told(DONE).splitlines() == [
        "cmpl-1-0: done, 57 tokens of output",
        "  asked      30 prompt tokens, at most 64 of output, priority 0",
        "  predicted  40 tokens of output, by retrieval (10 %: 10, 25 %: 20, 50 %: 40, 75 %: 50, 90 %: 64)",
        "  by         policy packhorse, placement predicted",
        "  placed     on prefill-0 and decode-1, after 0.125 s in the queue; 3 pages reserved",
        "  why        transfer 0.010 s",
        "  took       1.750 s from placement to end, 1.500 s expected",
        "  preempted  2 x",
    ]


def test_what_is_believed_now_stands_beside_what_was_first() -> None:
    now = {"outcome": "", "stage": "decoding", "generated_tokens": 30, "current_tokens": (35.0, 40.0, 45.0, 55.0, 64.0)}
    lines = told(DONE.model_copy(update=now)).splitlines()
    assert lines[2].startswith("  predicted  40 tokens of output, by retrieval")
    assert lines[3] == (
        "  now        45 tokens of output, given the 30 so far (10 %: 35, 25 %: 40, 50 %: 45, 75 %: 55, 90 %: 64)"
    )
    scored = told(DONE.model_copy(update={**now, "refined": True}))
    assert "given the 30 so far and scores of its hidden state (10 %: 35" in scored


def test_a_deadline_of_its_own_is_said() -> None:
    own = told(DONE.model_copy(update={"max_ttft_seconds": 2.5}))
    assert "at most 64 of output, priority 0, token 1 within 2.5 s" in own


def test_what_is_not_known_is_left_out() -> None:
    assert told(Explanation(job_id="j", outcome="failed:overloaded", error="9 jobs are queued")).splitlines() == [
        "j: failed:overloaded: 9 jobs are queued",
        "  asked      0 prompt tokens, at most 0 of output, priority 0",
    ]


def test_a_line_for_each() -> None:
    assert line() == ("cmpl-1-0  done, 57 tokens of output; predicted 40; on prefill-0 and decode-1 after 0.125 s")
    waiting = line(outcome="", stage="queued", queue_seconds=None, output_tokens=None)
    assert waiting == "cmpl-1-0  queued, 0 tokens so far; predicted 40; not placed"


@pytest.mark.parametrize(("job", "last"), [(None, None), ("j", 3)])
def test_a_job_or_the_newest(job: str | None, last: int | None) -> None:
    with pytest.raises(ConfigError, match="one of them"):
        explain("http://127.0.0.1:9", job, last, None, as_json=False)


@pytest.mark.parametrize("job", ["", "..", "a/b?c", "cmpl-1 ", "a\nb"])
def test_what_is_no_id(job: str) -> None:
    with pytest.raises(ConfigError, match=r"^job='.*': an id has letters, digits"):
        explain("http://127.0.0.1:1", job, None, None, as_json=False)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(ServerError, match="cannot reach"):
        explain("http://127.0.0.1:9", "j", None, None, as_json=False)
