"""The described clusters: what their workers cost and hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from packhorse.errors import ConfigError
from scheduler.cost import DEFAULT_PRIOR
from scheduler.planner import Instance, known_devices, registered_prior
from scheduler.planner.assumptions import Assumptions
from scheduler.simulator import (
    CLUSTERS,
    LLAMA_8B,
    Arrivals,
    SimCluster,
    Simulation,
    Workload,
    a100_cluster,
    model_size,
    planned_cluster,
)
from scheduler.simulator.machines import worker_spec

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


def on(cluster: SimCluster, *, named: bool, kv_format: str = "k4v2") -> Simulation:
    load = Workload("one", [10], [2], [2])
    return Simulation(cluster, load, Arrivals([0.0]), kv_format=kv_format, named_devices=named)


def test_workers_that_name_their_device_are_believed_to_cost_what_they_cost() -> None:
    """Their costs are the planner's figures, so this is knowledge that no live scheduler has: the default is not to name it."""
    run = on(a100_cluster("k4v2", prefill=2), named=True)
    run.run()
    for worker in run.workers.values():
        assert registered_prior(worker.info) == (worker.spec.cost, "the planner's figures of A100-80GB")
    believed = run.core.experience.cost.worker("prefill-1")  # has reported nothing yet
    assert believed.prefill.coefficients == run.workers["prefill-1"].spec.cost.prefill


def test_workers_that_name_no_device_start_from_the_defaults_but_for_their_network() -> None:
    for worker in on(a100_cluster("k4v2"), named=False).workers.values():
        assert worker.info.device == ""
        prior, basis = registered_prior(worker.info)
        assert prior == replace(DEFAULT_PRIOR, transfer=worker.spec.cost.transfer)
        assert "the defaults" in basis


def test_a_worker_that_the_planner_has_no_figures_of_has_no_name() -> None:
    """A GPU of a cluster file's own, and several GPUs, which no live worker has."""
    a100 = known_devices()["A100-80GB"]
    other = a100.model_copy(update={"bandwidth_gb_per_s": 1000.0})
    names = [
        worker_spec("w", "decode", Instance(LLAMA_8B, device, tp, Assumptions()), "k4v2", 50.0, 32).device
        for device, tp in ((a100, 1), (a100, 2), (other, 1))
    ]
    assert names == ["NVIDIA A100-SXM4-80GB", "", ""]
