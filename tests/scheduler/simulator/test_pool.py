"""The simulated pool against the live one: the same counts, the same pages found, kept and given up, the same reports."""

from __future__ import annotations

import random

import pytest

from decode.pool import PagePool
from scheduler.simulator.pool import Holding, SimPool
from tests.shapes import FORMAT, INFO

SLOTS, ROWS = 14, 5


class Both:
    """A live pool and a simulated one, which hear of the same jobs."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.live, self.sim = PagePool(INFO, FORMAT, SLOTS, ROWS), SimPool(SLOTS)
        self.pages: dict[str, int] = {}
        self.holdings: dict[str, Holding] = {}  # of jobs on the device
        self.out: set[str] = set()
        self.found = 0

    def reserve(self, job_id: str) -> None:
        prompt = "".join(self.rng.choice("ab") for _ in range(self.rng.randint(0, 6)))
        digests = tuple(prompt[: i + 1].encode().ljust(16, b".") for i in range(len(prompt)))
        pages = len(digests) + self.rng.randint(1, 3)
        if len(self.holdings) == ROWS or self.live.used_slots + pages > SLOTS:  # the scheduler counts no page as shared
            return
        held = self.live.reserve(job_id, pages, digests).shared_pages
        self.holdings[job_id], self.pages[job_id] = self.sim.take(pages, digests), pages
        assert self.holdings[job_id].shared == held
        self.found += held

    def share(self, job_id: str) -> None:
        if job_id in self.holdings and job_id not in self.live._host and self.holdings[job_id].digests:
            self.live.share(job_id)
            self.sim.share(self.holdings[job_id])

    def swap(self, job_id: str) -> None:
        if job_id in self.holdings:
            self.live.leave(job_id)
            self.live.left(job_id)
            self.sim.free(self.holdings.pop(job_id))
            self.out.add(job_id)
        elif job_id in self.out and len(self.holdings) < ROWS and self.live.used_slots + self.pages[job_id] <= SLOTS:
            self.live.come_back(job_id)
            self.live.came_back(job_id)
            self.holdings[job_id] = self.sim.take(self.pages[job_id])
            self.out.remove(job_id)

    def free(self, job_id: str) -> None:
        if job_id in self.holdings:
            self.sim.free(self.holdings.pop(job_id))
        self.live.free(job_id)
        self.out.discard(job_id)

    def check(self) -> None:
        live, sim = self.live, self.sim
        assert (sim.used, sim.prefixes.num_idle, len(sim.prefixes)) == (
            live.used_slots, live.cached_slots, len(live.prefixes)
        )  # fmt: skip
        if self.rng.random() < 0.2:
            assert sim.prefixes.report.take("w") == live.prefixes.report.take("w")


@pytest.mark.parametrize("seed", range(8))
def test_it_counts_what_the_live_pool_lists(seed: int) -> None:
    rng = random.Random(seed)
    both, jobs = Both(rng), 0
    for _ in range(1500):
        known = [*both.holdings, *both.out]
        step = rng.choice((both.reserve, both.share, both.share, both.swap, both.free))
        if step == both.reserve or not known:
            jobs += 1
            both.reserve(f"job-{jobs}")
        else:
            step(rng.choice(known))
        both.check()
    for job_id in [*both.holdings, *both.out]:
        both.free(job_id)
    both.check()
    assert both.sim.used == 0
    assert both.found > 100


def test_more_than_there_is_is_an_error() -> None:
    pool = SimPool(3)
    pool.take(2)
    with pytest.raises(AssertionError, match="free: 1"):
        pool.take(2)
