"""The described clusters: what their workers cost and hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from packhorse.errors import ConfigError
from scheduler.simulator import CLUSTERS, LLAMA_8B, Arrivals, Simulation, Workload, model_size, planned_cluster

CLUSTER_FILE = Path(__file__).parents[3] / "examples" / "clusters" / "two-tier.yaml"


@pytest.mark.parametrize("name", CLUSTERS)
def test_an_a100_serves_8b_at_plausible_speed(name: str) -> None:
    prefill, decode = CLUSTERS[name]("raw", 32).workers
    a, b, c = prefill.cost.prefill
    assert 5_000 < 2048 / (a * 4 + b * 2048 + c * 2048**2) < 20_000  # prompt tokens per second
    a, b, c = decode.cost.decode
    assert 0.010 < a + b * 32 * 500 + c * 32 < 0.025  # seconds of a step over 32 jobs


def test_packed_pages_are_many_more() -> None:
    size = model_size(LLAMA_8B)
    raw, packed = (
        CLUSTERS["a100"](name, 32).of_role("decode")[0].capacity_pages(size, name) for name in ("raw", "k2v2")
    )
    assert raw > 4000
    assert 5 < packed / raw < 8


def test_memory_that_holds_no_page_is_refused() -> None:
    with pytest.raises(ConfigError, match="hold no page"):
        CLUSTERS["a100"]("raw", 10_000).of_role("decode")[0].capacity_pages(model_size(LLAMA_8B), "raw")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="k3v3"):
        model_size(LLAMA_8B).layout("k3v3")


def test_a_cluster_file_becomes_workers_of_different_speed() -> None:
    prompts, outputs = [300] * 60, [100] * 60
    described = planned_cluster(CLUSTER_FILE, LLAMA_8B, prompts, outputs, "k4v2", 64)
    speeds = {worker.cost.decode for worker in described.of_role("decode")}
    assert len(described.of_role("prefill")) >= 1
    assert len(speeds) >= 2
    load = Workload("same", prompts, outputs, [128] * 60)
    records = Simulation(described, load, Arrivals(concurrency=20), kv_format="k4v2").run()
    assert min(records.status) == max(records.status) == 1
