"""The registry's counts and checks, the pages of a job, the order of the queue, and the choice of a pair."""

from __future__ import annotations

import random

import pytest

from hack_kernels.page_format import PageFormat
from packhorse.errors import ConfigError
from scheduler.pages import num_pages, pages_needed
from scheduler.placement import LeastLoaded
from scheduler.policies import Fcfs
from scheduler.workers import Workers
from tests.scheduler.fakes import LAYOUT, decode_info, make_job, prefill_info, tracked


def registry(*infos: object) -> Workers:
    workers = Workers()
    for info in infos:
        workers.add(info, info.worker_id.encode(), 0.0)  # type: ignore[attr-defined, arg-type]
    return workers


def test_pages_are_the_page_formats_arithmetic() -> None:
    import torch

    fmt = PageFormat(8, torch.float32)
    assert (fmt.page_tokens, fmt.sink_tokens) == (LAYOUT.page_tokens, LAYOUT.sink_tokens)
    for tokens in (1, 3, 4, 67, 68, 69, 131, 132, 133, 5000):
        assert num_pages(tokens, LAYOUT) == fmt.num_pages(tokens)
    assert pages_needed(make_job(prompt_tokens=60, max_tokens=8), LAYOUT) == 1
    assert pages_needed(make_job(prompt_tokens=60, max_tokens=7), LAYOUT) == 0


def test_a_place_is_taken_and_freed_once() -> None:
    workers = registry(prefill_info("p1", max_jobs=1), decode_info("d1", max_jobs=3, capacity_pages=5))
    prefill, decode = workers.of_role("prefill")[0], workers.of_role("decode")[0]
    one, two = tracked("a", pages=3), tracked("b", pages=3)
    assert decode.has_room_for(one)
    decode.hold(one)
    assert (decode.reserved_pages, len(decode.jobs)) == (3, 1)
    assert not decode.has_room_for(two)
    decode.drop("a")
    decode.drop("a")
    assert (decode.reserved_pages, decode.prompt_tokens) == (0, 0)
    prefill.hold(one)
    assert (prefill.reserved_pages, prefill.prompt_tokens) == (0, 10)
    assert not prefill.has_room_for(two)


def test_context_counts_the_prompt_at_prefill_and_the_whole_sequence_at_decode() -> None:
    workers = registry(prefill_info(max_context_tokens=20), decode_info(max_context_tokens=20))
    prefill, decode = workers
    assert prefill.has_context_for(tracked(prompt_tokens=19, max_tokens=50))
    assert not prefill.has_context_for(tracked(prompt_tokens=20, max_tokens=50))
    assert decode.has_context_for(tracked(prompt_tokens=10, max_tokens=10))
    assert not decode.has_context_for(tracked(prompt_tokens=10, max_tokens=11))


def test_all_share_the_first_layout_while_any_is_registered() -> None:
    workers = registry(prefill_info("p1"))
    other = LAYOUT.model_copy(update={"kv_format": "k4v2", "page_bytes": 1024})
    with pytest.raises(ConfigError, match=r"p2.*kv_format='k4v2' instead of 'raw', page_bytes=1024 instead of 4096"):
        workers.add(prefill_info("p2", layout=other), b"p2", 0.0)
    assert len(workers) == 1
    workers.remove("p1")
    assert workers.layout is None
    workers.add(prefill_info("p2", layout=other), b"p2", 0.0)
    assert workers.layout == other


@pytest.mark.parametrize(
    ("info", "named"), [(decode_info(data_address=None), "data_address"), (prefill_info(max_jobs=0), "max_jobs=0")]
)
def test_a_worker_that_could_do_nothing_is_refused(info: object, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        registry(info)


def test_fcfs_keeps_the_order_of_arrival() -> None:
    policy = Fcfs()
    assert policy.head(0) is None
    for name in "abc":
        policy.add(tracked(name), 0)
    policy.remove("b")
    policy.remove("never")
    seen = []
    while (job := policy.head(0)) is not None:
        seen.append(job.job_id)
        policy.remove(job.job_id)
    assert (seen, len(policy)) == (["a", "c"], 0)


def choice(workers: Workers, **sizes: int) -> tuple[str, str] | None:
    pair = LeastLoaded().choose(tracked("new", **sizes), workers)
    return None if pair is None else (pair.prefill.worker_id, pair.decode.worker_id if pair.decode else "")


def test_least_loaded_takes_outstanding_tokens_and_the_share_of_pages() -> None:
    workers = registry(
        prefill_info("p1"),
        prefill_info("p2"),
        decode_info("d1", capacity_pages=10),
        decode_info("d2", capacity_pages=100),
    )
    by_id = {worker.worker_id: worker for worker in workers}
    by_id["p1"].hold(tracked("a", prompt_tokens=100))
    for name in ("b", "c"):
        by_id["p2"].hold(tracked(name, prompt_tokens=20))
    by_id["d1"].hold(tracked("a", pages=2))
    by_id["d2"].hold(tracked("b", pages=5))
    assert choice(workers) == ("p2", "d2")
    assert choice(workers, max_tokens=1) == ("p2", "")


def test_no_pair_while_either_side_is_full() -> None:
    workers = registry(prefill_info("p1", max_jobs=1), decode_info("d1", capacity_pages=5, max_jobs=2))
    prefill, decode = workers
    assert choice(workers, pages=5) == ("p1", "d1")
    assert choice(workers, pages=6) is None
    decode.hold(tracked("a", pages=4))
    assert choice(workers, pages=2) is None
    assert choice(workers, pages=1) == ("p1", "d1")
    decode.hold(tracked("b"))
    assert choice(workers) is None
    assert choice(workers, max_tokens=1) == ("p1", "")
    prefill.hold(tracked("c"))
    assert choice(workers, max_tokens=1) is None


def test_ties_go_by_worker_id_whatever_the_order_of_registration() -> None:
    infos = [prefill_info(f"p{i}") for i in range(4)] + [decode_info(f"d{i}") for i in range(4)]
    for seed in range(10):
        random.Random(seed).shuffle(infos)
        assert choice(registry(*infos)) == ("p0", "d0")
