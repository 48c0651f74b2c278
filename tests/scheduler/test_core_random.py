"""Thousands of random events against fake workers that hold jobs for real: nothing overfull, nothing lost, nothing left."""

from __future__ import annotations

import pytest

from scheduler.policies import POLICIES
from tests.scheduler.random_world import World, played


@pytest.mark.parametrize("seed", range(12))
def test_random_events(seed: int) -> None:
    world = played(World(seed))
    assert world.preempted == world.dropped == 0
    assert world.paused > 0
    assert world.placed == sorted(world.placed), "a job overtook another"


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"fcfs"}))
@pytest.mark.parametrize("seed", [1, 2])
def test_random_events_with_preemption(seed: int, policy: str) -> None:
    world = played(World(seed, policy, host_pages=20, placement="predicted"))
    moves = POLICIES[policy].preempts or policy == "lamps"  # which swaps while jobs pause
    assert (world.preempted > 0) == (world.resumed > 0) == moves


@pytest.mark.parametrize("policy", sorted(name for name, policy in POLICIES.items() if policy.preempts))
@pytest.mark.parametrize(("seed", "host_pages"), [(1, 0), (3, 5)])
def test_random_events_with_dropping(seed: int, host_pages: int, policy: str) -> None:
    world = played(World(seed, policy, host_pages=host_pages, scarce=True))
    assert world.dropped > 0
    assert (world.preempted > 0) <= (host_pages > 0)
