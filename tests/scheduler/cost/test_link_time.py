"""One link's transfer time follows its samples: from any start, through outliers and changes, never below zero."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.cost.link_time import LinkTime

START = (0.002, 1e-9)


def sizes(count: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(10**6, 10**9) for _ in range(count)]


def seen(link: LinkTime, count: int, a: float, b: float, seed: int = 0) -> LinkTime:
    for size in sizes(count, seed):
        link.observe(size, a + b * size)
    return link


def test_without_samples_it_is_what_it_started_from() -> None:
    assert LinkTime(START).predict(10**9) == pytest.approx(1.002)


@pytest.mark.parametrize("factor", [100.0, 1.0, 0.01])
def test_any_start_is_left_behind(factor: float) -> None:
    link = seen(LinkTime((START[0] * factor, START[1] * factor)), 60, *START)
    for size in (10**7, 10**8, 10**9):
        assert link.predict(size) == pytest.approx(START[0] + START[1] * size, rel=0.03)


def test_one_sample_goes_half_of_the_way_and_a_few_nearly_all_of_it() -> None:
    link = LinkTime(START)
    link.observe(10**9, 100.2)
    assert 5 < link.predict(10**9) < 50
    for _ in range(9):
        link.observe(10**9, 100.2)
    assert link.predict(10**9) == pytest.approx(100.2, rel=0.1)


def test_an_outlier_changes_little_and_a_lasting_change_everything() -> None:
    link = seen(LinkTime(START), 100, *START)
    link.observe(10**9, 50.0)
    assert link.predict(10**9) == pytest.approx(1.002, rel=0.05)
    seen(link, 100, 0.01, 4e-9, seed=1)
    assert link.predict(10**9) == pytest.approx(4.01, rel=0.05)


def test_a_tenth_of_outliers_changes_little() -> None:
    link = LinkTime(START)
    for i, size in enumerate(sizes(300)):
        link.observe(size, (START[0] + START[1] * size) * (20.0 if i % 10 == 5 else 1.0))
    assert link.predict(10**9) == pytest.approx(1.002, rel=0.15)


@settings(deadline=None, max_examples=100)
@given(
    st.tuples(st.floats(1e-6, 10), st.floats(0, 1e-3)),
    st.lists(st.tuples(st.integers(0, 10**12), st.floats(1e-7, 1e5)), min_size=1, max_size=40),
)
def test_whatever_the_samples_no_coefficient_is_negative_or_not_finite(
    start: tuple[float, float], samples: list[tuple[int, float]]
) -> None:
    link = LinkTime(start)
    for size, seconds in samples:
        link.observe(size, seconds)
        assert all(math.isfinite(value) and value >= 0 for value in link.coefficients)


def test_a_latency_alone_can_be_learned_from() -> None:
    link = LinkTime((0.001, 0.0))
    for size in sizes(50):
        link.observe(size, 0.2)
    assert link.predict(10**8) == pytest.approx(0.2, rel=0.02)
