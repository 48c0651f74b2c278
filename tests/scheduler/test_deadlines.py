"""The earliest of the times that count, whatever was set before; nothing void is kept for long."""

from __future__ import annotations

import random

from scheduler.deadlines import Deadlines


def test_only_the_newest_time_of_a_job_counts() -> None:
    deadlines = Deadlines()
    assert deadlines.first is None
    deadlines.set("a", 5.0)
    deadlines.set("b", 7.0)
    deadlines.set("a", 9.0)
    assert (deadlines.first, len(deadlines)) == (7.0, 2)
    deadlines.forget("b")
    deadlines.forget("b")
    assert deadlines.first == 9.0
    assert list(deadlines.overdue(8.9)) == []
    assert list(deadlines.overdue(9.0)) == ["a"]
    assert (deadlines.first, len(deadlines)) == (None, 0)


def test_a_job_set_to_the_same_time_twice_is_overdue_once() -> None:
    deadlines = Deadlines()
    deadlines.set("a", 5.0)
    deadlines.set("a", 5.0)
    assert list(deadlines.overdue(6.0)) == ["a"]


def test_jobs_may_be_set_and_forgotten_while_others_are_taken_out() -> None:
    deadlines, taken = Deadlines(), []
    for job_id, time in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        deadlines.set(job_id, time)
    for job_id in deadlines.overdue(3.0):
        taken.append(job_id)
        if job_id == "a":
            deadlines.forget("b")
            deadlines.set("a", 8.0)
    assert taken == ["a", "c"]
    assert deadlines.first == 8.0


def test_any_order_gives_what_sorting_gives_and_keeps_little() -> None:
    rng, deadlines, times = random.Random(0), Deadlines(), {}
    for i in range(5000):
        job_id = f"j{rng.randrange(50)}"
        if rng.random() < 0.3:
            deadlines.forget(job_id)
            times.pop(job_id, None)
        else:
            times[job_id] = i + 1000 * rng.random()
            deadlines.set(job_id, times[job_id])
        assert deadlines.first == min(times.values(), default=None)
    assert len(deadlines._heap) <= 2 * 50 + 65
    assert list(deadlines.overdue(1e9)) == sorted(times, key=times.__getitem__)
