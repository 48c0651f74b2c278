"""What workers that register are believed to cost: by their GPU's name, their model's sizes and their network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from packhorse.errors import FrameError
from scheduler.cost import DEFAULT_PRIOR
from scheduler.planner import Instance, ModelShape, known_devices, registered_prior, worker_prior
from scheduler.planner.assumptions import Assumptions
from scheduler.planner.devices import device_named
from tests.scheduler.fakes import LAYOUT, Bench, decode_info, prefill_info
from transport.messages import ModelSizes, Register, WorkerInfo, decode, encode

A100, T4 = "NVIDIA A100-SXM4-80GB", "Tesla T4"


@pytest.fixture
def worker(llama: ModelShape) -> Any:
    """Makes registrations of workers with an 8B model in bfloat16."""
    layout = LAYOUT.model_copy(
        update={"layers": 32, "kv_heads": 8, "head_dim": 128, "dtype": "bfloat16", "kv_format": "k4v2"}
    )
    sizes = ModelSizes(**{name: getattr(llama, name) for name in ModelSizes.model_fields})

    def worker(worker_id: str = "p1", device: str = A100, **changes: Any) -> WorkerInfo:
        make = decode_info if worker_id.startswith("d") else prefill_info
        fields = {"layout": layout, "sizes": sizes, "device": device, "max_context_tokens": 131072}
        return make(worker_id, **{**fields, **changes})

    return worker


def test_a_named_gpu_has_the_planners_times_and_its_share_of_a_cloud_machines_network(
    worker: Any, llama: ModelShape
) -> None:
    device = known_devices()["A100-80GB"]
    planned = worker_prior(Instance(llama, device, 1, Assumptions()), "k4v2", device.typical_nic_gbps(1))
    assert registered_prior(worker()) == (planned, "the planner's figures of A100-80GB")


def test_workers_of_two_gpus_are_predicted_apart_before_any_report(worker: Any) -> None:
    b = Bench(worker("pa"), worker("pt", T4), worker("da"), worker("dt", T4), placement="predicted")
    cost = b.core.experience.cost
    assert cost.worker("pt").prefill_seconds(2048) > 3 * cost.worker("pa").prefill_seconds(2048)
    assert cost.worker("dt").step_seconds(30_000, 16) > 3 * cost.worker("da").step_seconds(30_000, 16)
    assert cost.transfer_seconds("pt", "da", 10**9) == pytest.approx(
        4 * cost.transfer_seconds("pa", "da", 10**9), rel=0.01
    )
    assert cost.worker("pa").prefill_seconds(2048) == pytest.approx(
        float(_instance(worker().sizes, "A100-80GB").prefill_seconds(np.array([2048.0]))[0]), rel=0.1
    )


def _instance(sizes: ModelSizes, gpu: str) -> Instance:
    shape = ModelShape(name="m", layers=32, kv_heads=8, head_dim=128, max_context_tokens=1, **sizes.model_dump())
    return Instance(shape, known_devices()[gpu], 1, Assumptions())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "cpu"}, "no figures"),
        ({"device": ""}, "no figures"),
        ({"device": "NVIDIA GeForce RTX 5090"}, "no figures"),
        ({"device": "NVIDIA A100-SXM4-40GB MIG 1g.5gb"}, "no figures"),
        ({"sizes": None}, "does not state its model's sizes"),
        ({"layout": LAYOUT}, "computes in float32"),
        ({"layout": LAYOUT.model_copy(update={"dtype": "float16", "kv_format": "k3v3"})}, "'k3v3' is not one of raw"),
    ],
)
def test_what_the_planner_cannot_say_is_left_to_the_defaults_with_the_reason(
    worker: Any, changes: dict[str, Any], reason: str
) -> None:
    prior, basis = registered_prior(worker(**changes))
    assert prior == DEFAULT_PRIOR
    assert basis.startswith("the defaults (")
    assert reason in basis


def test_the_network_that_a_worker_names_counts(worker: Any) -> None:
    for device in (A100, "cpu"):
        prior, _ = registered_prior(worker(device=device, nic_gbps=10.0))
        assert prior.transfer[1] == pytest.approx(8 / 10e9 / 0.8)
        assert prior.prefill == registered_prior(worker(device=device))[0].prefill


def test_reports_soon_outweigh_the_prior(worker: Any) -> None:
    cost = Bench(worker("p1")).core.experience.cost.worker("p1")
    for _ in range(16):
        cost.observe_prefill(1000, 5.0)
    assert cost.prefill_seconds(1000) == pytest.approx(5.0, rel=0.05)


def test_each_basis_is_logged_once(worker: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "scheduler.experience")
    Bench(worker("p1"), worker("p2"), worker("p3", "cpu"), worker("p4", "cpu"))
    assert [record.getMessage() for record in caplog.records] == [
        f"until they report, workers on {A100} are predicted by the planner's figures of A100-80GB",
        "until they report, workers on cpu are predicted by the defaults (the planner has no figures of it)",
    ]


def test_names_of_older_drivers_and_of_every_known_device() -> None:
    assert device_named("A100-SXM4-40GB") == device_named("NVIDIA A100-SXM4-40GB") == "A100-40GB"
    assert device_named("Tesla V100-SXM2-32GB") == "V100-32GB"
    assert device_named("NVIDIA A10") is None
    assert device_named("NVIDIA H100 PCIe") is None  # two thirds of the figures that devices.json has
    assert {device_named(name) for name in (A100, T4, "NVIDIA L4", "NVIDIA L40S", "NVIDIA A10G", "NVIDIA H200")} <= set(
        known_devices()
    )


@pytest.mark.parametrize(
    ("part", "changes", "named"),
    [
        ("sizes", {"heads": 0}, "heads"),
        ("sizes", {"head_params": -1}, "head_params"),
        ("sizes", {"active_params": 10**15}, "active_params=1000000000000000 is more than block_params"),
        ("sizes", {"active_experts": 3}, "active_experts=3 is more than experts=1"),
        ("layout", {"layers": 0}, "layers"),
        (None, {"nic_gbps": float("inf")}, "nic_gbps"),
        (None, {"nic_gbps": 0}, "nic_gbps"),
        (None, {"device": "x" * 201}, "device"),
    ],
)
def test_a_malformed_registration_is_refused_by_name(
    worker: Any, part: str | None, changes: dict[str, Any], named: str
) -> None:
    info = worker()
    wrong = {part: getattr(info, part).model_copy(update=changes)} if part else changes
    with pytest.raises(FrameError, match=named):
        decode(encode(Register(worker=info.model_copy(update=wrong))))


def test_a_registration_arrives_as_it_was(worker: Any) -> None:
    message = Register(worker=worker(nic_gbps=25.0))
    assert decode(encode(message)) == message
