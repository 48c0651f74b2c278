"""The arithmetic of the summary, on records made by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from bench.metrics import Limits, spread, summarize
from bench.record import RequestRecord
from bench.report import print_summary, write_json


def good(index: int, scheduled: float, first: float, last: float, tokens: int) -> RequestRecord:
    step = (last - first) / max(1, tokens - 1)
    return RequestRecord(
        index, scheduled, tokens, sent=scheduled + 0.5, first_token=first, last_token=last, finished=last,
        chunk_times=[first + i * step for i in range(tokens)], prompt_tokens=10, completion_tokens=tokens, status="ok",
        kv_transfer={"bytes_shipped": 25, "bytes_held": 7, "raw_bytes": 100},
    )  # fmt: skip


def failure(index: int, cause: str) -> RequestRecord:
    record = RequestRecord(index, 0.0, 1, sent=0.0, finished=1.0)
    record.failed(cause, "why")
    return record


RECORDS = [good(0, 0.0, 1.0, 3.0, 5), good(1, 1.0, 4.0, 5.0, 1), failure(2, "http_429"), RequestRecord(3, 2.0, 1)]


def test_latencies_run_from_the_scheduled_arrival() -> None:
    first, single = RECORDS[:2]
    assert (first.ttft, first.tpot, first.jct) == (1.0, 0.5, 3.0)
    assert first.itl == [0.5] * 4
    assert (single.ttft, single.tpot, single.jct) == (3.0, None, 4.0)


def test_summary() -> None:
    summary = summarize(RECORDS, 6, Limits(ttft=2.0))
    assert [summary[key] for key in ("planned", "completed", "failed", "interrupted", "not_sent")] == [6, 2, 1, 1, 2]
    assert summary["failures_by_cause"] == {"http_429": 1}
    assert summary["duration_seconds"] == 5.0
    assert summary["requests_per_second"] == pytest.approx(0.4)
    assert summary["output_tokens_per_second"] == pytest.approx(6 / 5)
    assert summary["total_tokens_per_second"] == pytest.approx(26 / 5)
    assert summary["goodput_requests_per_second"] == pytest.approx(0.2)
    assert summary["ttft_seconds"] == pytest.approx({"mean": 2, "p50": 2, "p90": 2.8, "p99": 2.98, "max": 3})
    assert summary["tpot_seconds"]["mean"] == 0.5
    assert summary["client_delay_seconds"]["p50"] == 0.5
    assert summary["kv_transfer"] == {
        "requests": 2,
        "bytes_shipped": 50,
        "bytes_held": 14,
        "raw_bytes": 200,
        "shipped_share": 0.25,
    }


def test_limits() -> None:
    first, single = RECORDS[:2]
    assert Limits(tpot=0.5).met(first)
    assert not Limits(tpot=0.4).met(first)
    assert Limits(tpot=0.1).met(single), "one token has no TPOT to miss"
    assert not Limits(jct=3.9).met(single)
    assert not Limits(ttft=9.0).met(RECORDS[2])
    assert not Limits().any


def test_nothing_sent(tmp_path: Path) -> None:
    summary = summarize([], 3, Limits())
    assert summary["not_sent"] == 3
    assert summary["ttft_seconds"] is None
    assert summary["goodput_requests_per_second"] is None
    assert spread([]) is None
    print_summary(summary, Console(quiet=True))
    write_json(tmp_path / "out.json", {"summary": summary, "rate": float("inf")})
    assert json.loads((tmp_path / "out.json").read_text())["rate"] == "inf"


def test_table_shows_all_that_was_counted() -> None:
    console = Console(record=True, width=120, file=io.StringIO())
    print_summary(summarize(RECORDS, 6, Limits(ttft=2.0)), console)
    text = console.export_text()
    for part in (
        "TTFT",
        "2,000.0",
        "2 completed, 1 failed, 1 interrupted, 2 not sent",
        "1 x http_429: why",
        "25.0%",
        "ttft 2 s",
    ):
        assert part in text
