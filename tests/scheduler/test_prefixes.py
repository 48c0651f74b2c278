"""What decode workers report of their prefix pages, and how many of a job's prompt that makes."""

from __future__ import annotations

import pytest

from scheduler.workers import Worker
from tests.scheduler.fakes import LAYOUT, Bench, decode_info, make_job, prefill_info, tracked
from transport.messages import PrefixChanges
from transport.page_digest import DIGEST_BYTES, PageDigests

PROMPT_TOKENS = 4 + 5 * 64 + 3
DIGESTS = list(PageDigests(make_job(prompt_tokens=PROMPT_TOKENS), LAYOUT))


@pytest.fixture
def bench() -> Bench:
    return Bench(prefill_info(), decode_info())


def report(bench: Bench, added: list[bytes], gone: list[bytes] | None = None, worker_id: str = "d1") -> None:
    changes = PrefixChanges(worker_id=worker_id, added=b"".join(added), gone=b"".join(gone or []))
    bench.hear(worker_id.encode(), changes)


def decode(bench: Bench) -> Worker:
    worker = bench.core.workers.get("d1")
    assert worker is not None
    return worker


def test_pages_count_from_the_first_to_the_first_that_is_missing(bench: Bench) -> None:
    job = tracked(prompt_tokens=PROMPT_TOKENS)
    assert decode(bench).prefix_pages(job) == 0
    report(bench, DIGESTS[1:3])
    assert decode(bench).prefix_pages(job) == 0
    report(bench, [DIGESTS[0]])
    assert decode(bench).prefix_pages(job) == 3
    report(bench, DIGESTS)
    assert decode(bench).prefix_pages(job) == len(DIGESTS) == 5
    assert decode(bench).prefix_pages(tracked(prompt_tokens=140)) == 2
    report(bench, [], [DIGESTS[3], DIGESTS[4]])
    assert decode(bench).prefix_pages(job) == 3


def test_a_job_of_another_salt_finds_nothing(bench: Bench) -> None:
    report(bench, DIGESTS)
    job = tracked(prompt_tokens=PROMPT_TOKENS)
    job.job = job.job.model_copy(update={"cache_salt": "theirs"})
    assert decode(bench).prefix_pages(job) == 0


def test_a_worker_that_registers_anew_starts_empty(bench: Bench) -> None:
    report(bench, DIGESTS)
    bench.register(decode_info())
    assert decode(bench).prefix_pages(tracked(prompt_tokens=PROMPT_TOKENS)) == 0


def test_foreign_and_broken_reports_change_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    report(bench, DIGESTS, worker_id="stranger")
    bench.hear(b"stranger", PrefixChanges(worker_id="d1", added=DIGESTS[0]))
    report(bench, [DIGESTS[0], b"short"])
    assert not decode(bench).prefixes
    assert f"{DIGEST_BYTES + 5} bytes are no whole number of digests" in caplog.text
