"""The figures of a load test, from its records.

Percentiles are numpy's linear interpolation between order statistics. Only successful requests count in the latencies and in
throughput; failed and interrupted ones are counted beside them. Duration runs from the first scheduled arrival to the last end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.record import RequestRecord


@dataclass(frozen=True)
class Limits:
    """Service-level objectives in seconds; None: no limit. A request without a TPOT (one token) meets any limit on it."""

    ttft: float | None = None
    tpot: float | None = None
    jct: float | None = None

    @property
    def any(self) -> bool:
        return any(value is not None for value in asdict(self).values())

    def met(self, record: RequestRecord) -> bool:
        pairs = ((record.ttft, self.ttft), (record.tpot, self.tpot), (record.jct, self.jct))
        return record.status == "ok" and all(limit is None or value is None or value <= limit for value, limit in pairs)


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """mean, p50, p90, p99 and max; None of nothing."""
    if not len(values):
        return None
    p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
    return {"mean": float(np.mean(values)), "p50": p50, "p90": p90, "p99": p99, "max": float(np.max(values))}


def summarize(records: Sequence[RequestRecord], planned: int, limits: Limits) -> dict[str, Any]:
    """The summary that the table shows and `--json` holds; seconds, tokens, requests per second."""
    good = [record for record in records if record.status == "ok"]
    duration = _duration(records)
    output_tokens = sum(record.completion_tokens for record in good)
    prompt_tokens = sum(record.prompt_tokens or 0 for record in good)
    return {
        "planned": planned,
        "completed": len(good),
        "failed": sum(record.status == "failed" for record in records),
        "interrupted": sum(record.status == "interrupted" for record in records),
        "not_sent": planned - len(records),
        "failures_by_cause": dict(
            Counter(record.cause for record in records if record.status == "failed").most_common()
        ),
        "first_error_by_cause": {r.cause: r.error for r in reversed(records) if r.status == "failed"},
        "duration_seconds": duration,
        "requests_per_second": _per_second(len(good), duration),
        "output_tokens_per_second": _per_second(output_tokens, duration),
        "total_tokens_per_second": _per_second(output_tokens + prompt_tokens, duration),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "requests_with_counted_tokens": sum(record.tokens_counted for record in good),
        "limits": asdict(limits),
        "goodput_requests_per_second": _per_second(sum(map(limits.met, good)), duration) if limits.any else None,
        "ttft_seconds": spread([record.ttft for record in good if record.ttft is not None]),
        "tpot_seconds": spread([record.tpot for record in good if record.tpot is not None]),
        "itl_seconds": spread([gap for record in good for gap in record.itl]),
        "jct_seconds": spread([record.jct for record in good if record.jct is not None]),
        "client_delay_seconds": spread([r.sent - r.scheduled for r in records if r.sent is not None]),
        "kv_transfer": _kv_transfer(good),
    }


def _duration(records: Sequence[RequestRecord]) -> float:
    ends = [record.finished for record in records if record.finished is not None]
    return max(ends) - min(record.scheduled for record in records) if ends else 0.0


def _per_second(count: int, duration: float) -> float:
    return count / duration if duration > 0 else 0.0


def _kv_transfer(good: Sequence[RequestRecord]) -> dict[str, float] | None:
    """Bytes of KV that the server says it shipped, and held already, against raw pages; None where no server reported any."""
    reports = [record.kv_transfer for record in good if record.kv_transfer]
    if not reports:
        return None
    shipped = sum(int(report.get("bytes_shipped") or 0) for report in reports)
    held = sum(int(report.get("bytes_held") or 0) for report in reports)
    raw = sum(int(report.get("raw_bytes") or 0) for report in reports)
    return {
        "requests": len(reports),
        "bytes_shipped": shipped,
        "bytes_held": held,
        "raw_bytes": raw,
        "shipped_share": shipped / raw if raw else 0.0,
    }
