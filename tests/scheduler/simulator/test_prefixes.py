"""Prompts that begin alike: pages that a decode worker holds are not sent, are found again, make way for jobs, and none is left."""

from __future__ import annotations

import random

import pytest

from packhorse.errors import ConfigError
from scheduler.pages import num_pages
from scheduler.placement import PLACEMENTS
from scheduler.policies import POLICIES
from scheduler.predictor.guard import Guarded
from scheduler.simulator import (
    CANCELLED,
    DONE,
    FAILED,
    Arrivals,
    BlockPrompt,
    Failure,
    SimCluster,
    SimOracle,
    Simulation,
    Workload,
    patient_config,
)
from scheduler.simulator.messages import submit
from scheduler.simulator.prompts import SimPrompt
from tests.scheduler.simulator.worlds import SMALL_MODEL, cluster, poisson
from transport.page_digest import PageDigests

BLOCK = 128
LAYOUT = SMALL_MODEL.layout("raw")
SLOT = SMALL_MODEL.slot_bytes("raw")


def alike(*prompts: tuple[tuple[int, ...], int], output: int = 20) -> Workload:
    """Requests by (blocks, tokens)."""
    made = [BlockPrompt(blocks, tokens, BLOCK) for blocks, tokens in prompts]
    most = [2 * output] * len(made)
    return Workload("alike", [len(p) for p in made], [output] * len(made), most, prompts=made, share_prefixes=True)


def run(load: Workload, times: list[float], on: SimCluster | None = None, **fields: object) -> Simulation:
    simulation = Simulation(on or cluster(), load, Arrivals(times), heartbeat_seconds=0.1, **fields)  # type: ignore[arg-type]
    simulation.run()
    return simulation


def test_tokens_of_blocks_are_equal_where_the_blocks_are() -> None:
    one, two = BlockPrompt((3, 0, 7), 300, BLOCK), BlockPrompt((3, 0, 5), 384, BLOCK)
    assert [one[i] == two[i] for i in (0, 127, 128, 255, 256, -1)] == [True] * 4 + [False] * 2
    assert list(one) == list(one[:]) == [*range(384, 512), *range(128), *range(896, 940)]
    assert one[100:140] == list(one)[100:140]
    assert one[-50:] == list(one)[-50:]
    assert one[::7] == list(one)[::7]
    assert len(set(one)) == len(one) == 300
    with pytest.raises(IndexError):
        one[300]
    with pytest.raises(AssertionError, match="without a block"):
        BlockPrompt((1, 2), 257, BLOCK)


def test_pages_are_equal_up_to_the_first_block_that_differs() -> None:
    """Page p ends with token 4 + 64 (p + 1), so page 3 reaches into block 2."""
    digests = [
        list(PageDigests(submit("0", SimPrompt(BlockPrompt(blocks, 400, BLOCK), 1), 8, 0).job, LAYOUT))
        for blocks in ((1, 2, 3, 4), (1, 2, 4, 4), (2, 1, 3, 4))
    ]
    assert [len(pages) for pages in digests] == [6] * 3
    assert [a == b for a, b in zip(digests[0], digests[1], strict=True)] == [True] * 3 + [False] * 3
    assert not set(digests[0]) & set(digests[2])


def test_hits_by_hand() -> None:
    """One after the other: nothing held; 3 of 6 pages (two blocks); all 6 of the first again, and the residual."""
    load = alike(((1, 2, 3, 4), 400), ((1, 2, 9), 384), ((1, 2, 3, 4), 400))
    simulation = run(load, [0.0, 2.0, 4.0])
    records = simulation.records
    pages = [num_pages(tokens, LAYOUT) for tokens in load.prompt_tokens]
    assert pages == [6, 5, 6]
    residuals = sum(tokens - 64 * count for tokens, count in zip(load.prompt_tokens, pages, strict=True))
    assert records.bytes_held == (3 + 6) * SLOT
    assert records.bytes_shipped == (17 - 9) * SLOT + residuals * SMALL_MODEL.token_bytes
    assert len(simulation.decode["decode-0"].pool.prefixes) == 6 + 2
    assert simulation.prefill["prefill-0"].bytes_shipped == records.bytes_shipped


def test_what_is_held_saves_the_transfer_and_no_computation() -> None:
    slow = cluster(network_bytes_per_second=2e6)
    load = alike(((1, 2, 3, 4), 400), ((1, 2, 3, 4), 400))
    on, off = (run(load, [0.0, 5.0], slow, prefix_cache=cache).records for cache in (True, False))
    assert on.first_token == off.first_token
    assert on.ended[0] == off.ended[0]
    saved = off.ended[1] - on.ended[1]
    assert saved == pytest.approx(6 * SLOT / 2e6, rel=0.1)
    assert off.bytes_held == 0
    assert on.bytes_held + on.bytes_shipped == off.bytes_shipped


def test_jobs_that_start_together_each_send_their_pages_and_then_share_one_copy() -> None:
    simulation = run(alike(((1, 2), 256), ((1, 2), 256), output=100), [0.0, 0.0], cluster(2))
    assert simulation.records.bytes_held == 0
    decode = simulation.decode["decode-0"]
    assert len(decode.pool.prefixes) == num_pages(256, LAYOUT)
    needed = num_pages(256 + 200, LAYOUT)
    assert decode.most_pages == 2 * needed


def test_pages_that_nobody_uses_make_way() -> None:
    """A pool of 8 pages: a prompt with 6 of them in between takes all, so nothing is found of the first."""
    first, other = ((1, 2), 256), ((5, 6, 7, 8), 450)
    assert run(alike(first, first), [0.0, 2.0], cluster(pages=8)).records.bytes_held == 3 * SLOT
    between = run(alike(first, other, first), [0.0, 2.0, 4.0], cluster(pages=8))
    assert (
        between.records.bytes_held == 1 * SLOT
    )  # 7 pages are wanted: the last two of its three go, and the first stays
    assert run(alike(first, other, first), [0.0, 2.0, 4.0], cluster(pages=30)).records.bytes_held == 3 * SLOT


def test_the_scheduler_knows_what_workers_hold() -> None:
    simulation = run(alike(((1, 2), 256), ((1, 3), 256)), [0.0, 1.0], cluster(1, 2))
    for worker in simulation.decode.values():
        worker.beat()
    simulation._drain()
    for known in simulation.core.workers.of_role("decode"):
        assert len(known.prefixes) == len(simulation.decode[known.worker_id].pool.prefixes)
    assert sum(len(known.prefixes) for known in simulation.core.workers.of_role("decode")) > 0


def test_predicted_goes_where_the_pages_are() -> None:
    """By turns the fifth prompt would find nothing: the others went to the other worker in between."""
    slow = cluster(1, 3, network_bytes_per_second=1e6)
    load = alike(
        *(((2 * i, 2 * i + 1), 256) for i in range(3)), *(((2 * i, 2 * i + 1), 256) for i in (2, 0, 1, 2, 1, 0))
    )
    times = [4.0 * i for i in range(len(load))]
    by_turns, predicted = (
        run(load, times, slow, config=patient_config(placement=name)).records for name in ("round-robin", "predicted")
    )
    assert predicted.bytes_held == 6 * 3 * SLOT > by_turns.bytes_held


def test_stand_ins_share_nothing() -> None:
    load = Workload("same", [300] * 5, [20] * 5, [40] * 5)
    assert run(load, [float(i) for i in range(5)]).records.bytes_held == 0
    with pytest.raises(ConfigError, match="share no prefixes"):
        Workload("same", [300], [20], [40], share_prefixes=True)


# ---- any order of events

COUNT = 150


def chats(seed: int) -> Workload:
    """Prompts that go on from one of the earlier ones, or start anew from one of two instructions."""
    rng = random.Random(seed)
    blocks: list[tuple[int, ...]] = []
    for number in range(COUNT):
        begin = rng.choice(blocks[-20:]) if blocks and rng.random() < 0.7 else (rng.randrange(2),)
        blocks.append((*begin[:4], 2 + number))
    prompts = [BlockPrompt(ids, (len(ids) - 1) * BLOCK + rng.randint(1, BLOCK), BLOCK) for ids in blocks]
    most = [rng.choice([1, 2, 40, 300]) for _ in blocks]
    pauses = [(1, 0.3) if rng.random() < 0.1 and limit > 2 else None for limit in most]
    return Workload(
        "chats", [len(p) for p in prompts], [rng.randint(1, limit) for limit in most], most,
        prompts=prompts, pauses=pauses, share_prefixes=True,
    )  # fmt: skip


def made(policy: str, placement: str, seed: int, **fields: object) -> Simulation:
    """Full for most of the time, with host memory; workers are lost and clients leave."""
    on = cluster(2, 2, pages=24, max_jobs=5, host_memory_bytes=10**9)
    times = poisson(COUNT, 30.0, seed)
    return Simulation(
        on, chats(seed), Arrivals(times, cancels={index: times[index] + 0.3 for index in range(0, COUNT, 11)}),
        config=patient_config(policy=policy, placement=placement, worker_timeout_seconds=2.0),
        failures=[Failure("decode-1", 1.5, back_at=4.0), Failure("prefill-0", 2.0, back_at=2.2)],
        heartbeat_seconds=0.2, predictor=Guarded(SimOracle()), **fields,  # type: ignore[arg-type]
    )  # fmt: skip


CASES = [(policy, "least-loaded", 0) for policy in sorted(POLICIES)]
CASES += [("packhorse", placement, seed) for placement in sorted(PLACEMENTS) for seed in (1, 2)]


@pytest.mark.parametrize(("policy", "placement", "seed"), CASES)
def test_nothing_is_left_after_any_order(policy: str, placement: str, seed: int) -> None:
    """`Simulation.run` ends with `check_idle`; kept pages are all idle then, and none is lost or there twice."""
    simulation = made(policy, placement, seed)
    records = simulation.run()
    assert set(records.status) == {DONE, FAILED, CANCELLED}
    assert records.bytes_held > 0
    for worker in simulation.decode.values():
        assert worker.pool.prefixes.num_idle == len(worker.pool.prefixes)
        assert worker.pool.take(worker.info.capacity_pages).own == worker.info.capacity_pages
    again = made(policy, placement, seed).run()
    assert (again.ended, again.first_token, again.bytes_held) == (
        records.ended, records.first_token, records.bytes_held
    )  # fmt: skip


def test_jobs_were_preempted_among_these() -> None:
    """What the test above is about happens in it: jobs with shared pages go out and come back."""
    simulation = made("srpt-oracle", "least-loaded", 0)
    simulation.run()
    assert sum(worker.num_preempted for worker in simulation.decode.values()) > 5
