"""Time in service and time waiting, by a clock that is passed in."""

from __future__ import annotations

from scheduler.progress import Progress


def test_what_was_dropped_is_to_be_computed_again() -> None:
    progress = Progress(since=0.0)
    assert (progress.generated, progress.to_replay, progress.computed) == (0, 0, 0)
    progress.report(9)
    assert (progress.generated, progress.to_replay, progress.computed) == (9, 0, 9)
    progress.drop(10)
    assert (progress.generated, progress.to_replay, progress.computed) == (10, 10, 0)
    progress.report(1)
    progress.report(4)
    assert (progress.generated, progress.to_replay, progress.computed) == (10, 6, 4)
    progress.report(3)  # older word
    assert (progress.generated, progress.to_replay, progress.computed) == (10, 6, 4)
    progress.report(12)
    assert (progress.generated, progress.to_replay, progress.computed) == (12, 0, 12)


def test_service_adds_up_over_stops() -> None:
    progress = Progress(since=10.0)
    assert (progress.waiting_seconds(13), progress.service_seconds(13)) == (3, 0)
    progress.run(13)
    progress.run(14)
    assert (progress.waiting_seconds(15), progress.service_seconds(15)) == (0, 2)
    progress.wait(15)
    progress.wait(16)
    assert (progress.waiting_seconds(20), progress.service_seconds(20)) == (5, 2)
    progress.run(20)
    assert progress.service_seconds(21) == 3


def test_what_prefill_took_is_known_from_its_first_end_on() -> None:
    progress = Progress(0.0)
    progress.run(1.0)
    progress.report(1)  # the decode worker's word may come before
    progress.prefilled(3.0)
    assert progress.prefill_seconds == 2.0
    progress.drop(5)
    progress.prefilled(9.0)
    assert (progress.prefill_seconds, progress.to_replay) == (2.0, 4)
