"""What decode workers report of their prefix pages, and how many of a job's prompt that makes."""

from __future__ import annotations

import os
import tracemalloc

import pytest

from scheduler.cost import CostModel, WorkerPrior
from scheduler.placement import PredictedCompletion
from scheduler.prefixes import HeldPrefixes, PrefixHolders
from scheduler.workers import MOST_HOLDERS, Worker
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


# ---- who holds the longest prefix


def holders(bench: Bench, prompt_tokens: int = PROMPT_TOKENS) -> list[str]:
    return [worker.worker_id for worker in bench.core.workers.prefix_holders(tracked(prompt_tokens=prompt_tokens))]


def test_the_holders_of_the_longest_prefix_are_found() -> None:
    bench = Bench(prefill_info(), *(decode_info(f"d{i}") for i in range(4)))
    assert holders(bench) == []
    report(bench, DIGESTS[:2], worker_id="d0")
    report(bench, DIGESTS[:4], worker_id="d2")
    report(bench, DIGESTS[:4], worker_id="d1")
    assert holders(bench) == ["d1", "d2"]
    assert holders(bench, 140) == ["d0", "d1", "d2"]
    report(bench, [], DIGESTS[2:4], worker_id="d1")
    report(bench, [], DIGESTS[2:4], worker_id="d1")  # what is not held cannot go
    assert holders(bench) == ["d2"]
    bench.core.workers.remove("d2")
    assert holders(bench) == ["d0", "d1"]
    for worker_id in ("d0", "d1"):
        bench.core.workers.remove(worker_id)
    assert not bench.core.workers._holders


def test_a_prefix_that_very_many_hold_singles_out_nobody() -> None:
    bench = Bench(*(decode_info(f"d{i}") for i in range(MOST_HOLDERS + 1)))
    for i in range(MOST_HOLDERS):
        report(bench, DIGESTS, worker_id=f"d{i}")
    assert len(holders(bench)) == MOST_HOLDERS
    report(bench, DIGESTS, worker_id=f"d{MOST_HOLDERS}")
    assert holders(bench) == []


@pytest.mark.parametrize(("bytes_per_second", "chosen"), [(1e4, "d7"), (1e12, "d0")])
def test_predicted_placement_goes_where_the_prefix_is_if_the_link_is_worth_it(
    bytes_per_second: float, chosen: str
) -> None:
    """d7 is the most loaded of equal workers, so the order by load alone would never look at it."""
    cost = CostModel(
        WorkerPrior(prefill=(1e-3, 1e-6, 0.0), decode=(1e-3, 1e-9, 1e-3), transfer=(0.0, 1 / bytes_per_second))
    )
    bench = Bench(prefill_info(), *(decode_info(f"d{i}") for i in range(8)))
    placement = PredictedCompletion(cost)
    for i in range(1, 8):
        for j in range(2 if i == 7 else 1):
            bench.core.workers.get(f"d{i}").hold(tracked(f"busy-{i}-{j}", pages=1))  # type: ignore[union-attr]
    report(bench, DIGESTS, worker_id="d7")
    pair = placement.choose(tracked(prompt_tokens=PROMPT_TOKENS, pages=6), bench.core.workers)
    assert pair is not None
    assert pair.decode is not None
    assert pair.decode.worker_id == chosen


def test_predicted_placement_does_not_wait_for_a_full_holder() -> None:
    bench = Bench(prefill_info(), decode_info("d0"), decode_info("d1", max_jobs=1))
    report(bench, DIGESTS, worker_id="d1")
    bench.core.workers.get("d1").hold(tracked("busy", pages=1))  # type: ignore[union-attr]
    pair = PredictedCompletion(CostModel()).choose(tracked(prompt_tokens=PROMPT_TOKENS, pages=6), bench.core.workers)
    assert pair is not None
    assert pair.decode is not None
    assert pair.decode.worker_id == "d0"


def test_a_page_takes_less_than_300_bytes() -> None:
    holders = PrefixHolders()
    digests = [os.urandom(DIGEST_BYTES * 4096) for _ in range(5)]
    tracemalloc.start()
    try:
        worker = HeldPrefixes("decode-0", holders)
        for some in digests:
            worker.change(some, b"")
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken / (5 * 4096) < 300
    worker.clear()
    assert not holders
