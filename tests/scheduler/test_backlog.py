"""How long work would wait: by the kind of it that takes longest, at the rate of late."""

from __future__ import annotations

import pytest

from scheduler.backlog import HALF_LIFE_SECONDS, LEAST_SECONDS, Backlog
from scheduler.cost import CostModel
from scheduler.forecast import Forecast
from scheduler.jobs import TrackedJob
from scheduler.workers import Workers
from tests.scheduler.fakes import decode_info, prefill_info, tracked
from tests.scheduler.policies.making import UnitCost


def backlog() -> Backlog:
    """A worker of each role; the decode worker holds 100 pages and 10 jobs."""
    workers = Workers()
    workers.add(prefill_info(), b"p1", 0.0)
    workers.add(decode_info(capacity_pages=100, max_jobs=10), b"d1", 0.0)
    return Backlog(workers, CostModel(), UnitCost())


def job(tokens: int, pages: int, prompt_tokens: int = 1) -> TrackedJob:
    made = tracked(pages=pages, prompt_tokens=prompt_tokens, max_tokens=tokens)
    made.believe(Forecast.exact(tokens, tokens))
    return made


def placing(made: Backlog, work: TrackedJob, interval: float, seconds: float, start: float = 0.0) -> float:
    """Jobs like that are placed so often, while others wait; returns when that ends."""
    made.seen(start, waiting=True)
    for i in range(round(seconds / interval)):
        made.placed(work)
        made.seen(start + (i + 1) * interval, waiting=True)
    return start + seconds


def test_nothing_is_known_before_jobs_have_waited_for_long_enough() -> None:
    made, one = backlog(), job(101, 1)
    now = placing(made, one, 0.1, LEAST_SECONDS - 0.2)
    assert made.seconds([one], now) is None
    now = placing(made, one, 0.1, 0.4, now)
    assert made.seconds([one], now) is not None


def test_the_rate_of_late_is_what_counts() -> None:
    made, one = backlog(), job(101, 1)
    now = placing(made, one, 1.0, 20 * HALF_LIFE_SECONDS)
    assert made.seconds([one] * 10, now) == pytest.approx(10, rel=0.05)
    now = placing(made, one, 0.1, 5 * HALF_LIFE_SECONDS, now)
    assert made.seconds([one] * 10, now) == pytest.approx(1, rel=0.3)


def test_time_in_which_nobody_waits_does_not_count() -> None:
    made, one = backlog(), job(101, 1)
    now = placing(made, one, 0.5, 20.0)
    before = made.seconds([one], now)
    made.seen(now, waiting=False)
    made.placed(one)
    made.seen(now + 100.0, waiting=False)
    assert made.seconds([one], now + 100.0) == before


def test_pages_places_or_prefill_bind() -> None:
    """Of 100 pages and 10 places half the pages take 5 times what a place takes; a prompt without output takes neither."""
    made, one = backlog(), job(101, 1)
    now = placing(made, one, 0.5, 20.0)
    places, pages = made.seconds([one], now), made.seconds([job(101, 50)], now)
    assert places is not None
    assert pages == pytest.approx(5 * places)
    long, longer = (made.seconds([job(2, 1, prompt_tokens=tokens)], now) for tokens in (100_000, 200_000))
    assert long is not None
    assert long > places
    assert longer == pytest.approx(2 * long, rel=0.01)
