"""Who is turned away at once: what no worker could hold, a full queue, an id that is taken."""

from __future__ import annotations

import pytest

from tests.scheduler.fakes import GATEWAY, Bench, decode_info, make_job, prefill_info
from transport.messages import (
    JobEnded,
    JobFailed,
)


@pytest.mark.parametrize(
    ("workers", "max_tokens", "role"),
    [([], 5, "prefill"), ([decode_info()], 1, "prefill"), ([prefill_info()], 5, "decode")],
)
def test_a_role_without_workers_is_unavailable(workers: list, max_tokens: int, role: str) -> None:
    bench = Bench(*workers)
    bench.submit(make_job(max_tokens=max_tokens))
    error = bench.failure()
    assert error.code == "unavailable"
    assert role in error.message
    assert bench.core.totals == {"failed:unavailable": 1}


@pytest.mark.parametrize(
    ("sizes", "numbers"),
    [
        ({"prompt_tokens": 10, "max_tokens": 991}, ("1001", "1000")),
        ({"prompt_tokens": 1000, "max_tokens": 1}, ("1001", "1000")),
        ({"prompt_tokens": 100, "max_tokens": 700}, ("12 pages", "has 10")),
    ],
)
def test_a_job_that_never_fits_fails_at_once_with_both_numbers(sizes: dict, numbers: tuple[str, str]) -> None:
    bench = Bench(
        prefill_info(),
        decode_info("d1", capacity_pages=10),
        decode_info("d2", max_context_tokens=300, capacity_pages=99),
    )
    bench.submit(make_job(**sizes))
    error = bench.failure()
    assert error.code == "context_length_exceeded"
    assert all(number in error.message for number in numbers), error.message
    bench.assert_idle()


def test_a_full_queue_is_overloaded() -> None:
    bench = Bench(prefill_info(max_jobs=1), decode_info(), max_queue=2)
    for name in "abc":
        bench.submit(make_job(name))
    assert bench.take(JobFailed) == []
    bench.submit(make_job("d"))
    assert bench.failure().code == "overloaded"


def test_a_job_id_under_way_is_taken(bench: Bench) -> None:
    bench.bring_to("decoding")
    bench.submit(gateway=b"gateway-2")
    assert bench.failure(b"gateway-2").code == "invalid_request"
    assert bench.state() == "decoding"
    bench.decoded()
    assert len(bench.take(JobEnded, GATEWAY)) == 1
