"""Order of events, and timers that were moved."""

from __future__ import annotations

from scheduler.simulator.events import EventQueue, Timer


def run(events: EventQueue) -> None:
    while events.step():
        pass


def test_events_run_by_time_and_then_in_the_order_of_their_making() -> None:
    events, seen = EventQueue(), []
    for name, time in (("late", 2.0), ("first", 1.0), ("second", 1.0)):
        events.at(time, lambda now, name=name: seen.append((name, now)))
    run(events)
    assert seen == [("first", 1.0), ("second", 1.0), ("late", 2.0)]


def test_an_event_in_the_past_happens_now() -> None:
    events, seen = EventQueue(), []
    events.at(5.0, lambda now: events.at(1.0, seen.append))
    run(events)
    assert seen == [5.0]


def test_only_the_newest_time_of_a_timer_counts() -> None:
    events, seen = EventQueue(), []
    timer = Timer(events, seen.append)
    for time in (5.0, 3.0, 5.0, 4.0):
        timer.set(time)
    run(events)
    assert seen == [4.0]
    timer.set(9.0)
    timer.set(None)
    run(events)
    assert seen == [4.0]
    assert timer.time is None
