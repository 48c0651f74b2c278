"""When pages arrive that are shipped while prefill computes."""

from __future__ import annotations

import pytest

from scheduler.simulator.link import Port, ship


def test_a_slow_link_is_what_shipping_waits_for() -> None:
    source, target = Port(1000.0), Port(500.0)
    assert ship(source, target, 1000, ready_at=1.0, done_at=1.5, last_bytes=10) == pytest.approx(1.0 + 2.0)
    assert (source.free_at, target.free_at) == pytest.approx((2.0, 3.0))


def test_a_fast_link_leaves_the_last_layer_alone_to_wait_for() -> None:
    source, target = Port(1e6), Port(1e6)
    assert ship(source, target, 1000, ready_at=1.0, done_at=1.5, last_bytes=100) == pytest.approx(1.5 + 1e-4)


def test_a_slow_receiver_does_not_hold_up_streams_to_others() -> None:
    source, slow, fast = Port(1000.0), Port(10.0), Port(1000.0)
    ends = [ship(source, target, 100, ready_at=0.0, done_at=0.0, last_bytes=0) for target in (slow, slow, fast)]
    assert ends == pytest.approx([10.0, 20.0, 0.3])


def test_streams_take_turns_at_a_port() -> None:
    target = Port(100.0)
    ends = [ship(Port(1e9), target, 100, ready_at=0.0, done_at=0.0, last_bytes=0) for _ in range(3)]
    assert ends == pytest.approx([1.0, 2.0, 3.0])
    assert target.bytes_total == 300
