"""`packhorse compose`: a deployment file as services of compose.yaml, by itself and on a real Docker engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from packhorse.compose import ComposeOverride, write_override
from packhorse.deployment import load_deployment
from packhorse.errors import ConfigError
from tests.compose.conftest import ROOT, Stack, running
from tests.compose.test_compose import complete
from tests.compose.test_names import PROCESSES, variables

CPU = """
version: 1
model: embedded
kv_format: k2v2
scheduler: {machine: a}
gateway: {machine: a}
machines:
  - name: a
    processes:
      - {name: a-prefill-0, role: prefill, devices: [cpu]}
      - {name: a-decode-0, role: decode, devices: [cpu], nic_gbps: 12.5, max_jobs: 8, pool_bytes: 1000000, data_bind: null}
      - {name: a-decode-1, role: decode, devices: [cpu], max_jobs: 8, pool_bytes: 2000000}
"""
GPU = CPU.replace("a-decode-1, role: decode, devices: [cpu]", "a-decode-1, role: decode, devices: ['cuda:1']")
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "deployment.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def services(write: Write) -> Callable[[str], dict[str, Any]]:
    def services(text: str) -> dict[str, Any]:
        written = ComposeOverride(load_deployment(write(text)), ROOT).text("deployment.yaml", "planned.yaml")
        assert "*" not in written.replace("*.", ""), "an alias"
        return dict(yaml.safe_load(written)["services"])

    return services


def base(name: str = "compose.yaml") -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / name).read_text())["services"])


def test_a_service_for_each_worker_in_place_of_those_that_scale(services: Callable[[str], dict[str, Any]]) -> None:
    made = services(CPU)
    assert set(made) == {"gateway", "prefill", "decode", "a-prefill-0", "a-decode-0", "a-decode-1"}
    assert made["prefill"] == made["decode"] == {"scale": 0}
    for name, role in (("a-prefill-0", "prefill"), ("a-decode-0", "decode")):
        same = {key: value for key, value in made[name].items() if key != "environment"}
        assert same == {key: value for key, value in base()[role].items() if key != "environment"}


def test_every_planned_field_is_a_variable_that_the_process_has(services: Callable[[str], dict[str, Any]]) -> None:
    made = services(CPU.replace("k2v2", "k2v2\nserved_name: kite$x"))
    assert made["gateway"]["environment"] == {"PACKHORSE_MODEL": "embedded", "PACKHORSE_SERVED_NAME": "kite$$x"}
    for worker in ("a-prefill-0", "a-decode-0", "a-decode-1"):
        role, environment = worker.split("-")[1], made[worker]["environment"]
        named = {name for name in environment if name.startswith("PACKHORSE_")}
        assert named <= variables(PROCESSES[role]).keys() | {"PACKHORSE_SECRET_FILE"}
        assert base()[role]["environment"].keys() <= environment.keys()
        expected = {"WORKER_ID": worker, "MODEL": "embedded", "KV_FORMAT": "k2v2", "LINK": "zmq", "DEVICE": "cpu"}
        assert {name: environment[f"PACKHORSE_{name}"] for name in expected} == expected
    limits = [made[f"a-decode-{i}"]["environment"]["PACKHORSE_POOL_BYTES"] for i in (0, 1)]
    assert limits == ["1000000", "2000000"]
    assert made["a-decode-0"]["environment"]["PACKHORSE_NIC_GBPS"] == "12.5"
    assert made["a-decode-1"]["environment"]["PACKHORSE_NIC_GBPS"] is None  # left to the shell


def test_a_worker_on_a_gpu_reserves_it_and_sees_no_other(services: Callable[[str], dict[str, Any]]) -> None:
    made = services(GPU)
    (device,) = made["a-decode-1"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "capabilities": ["gpu"], "device_ids": ["1"]}
    assert made["a-decode-1"]["environment"]["PACKHORSE_DEVICE"] == "cuda:0"
    assert made["a-decode-1"]["image"] == base("compose.gpu.yaml")["decode"]["image"]
    assert made["a-decode-1"]["build"]["args"]["DEVICE"] == "cuda"
    assert "deploy" not in made["a-decode-0"]
    assert made["a-decode-0"]["image"] == base()["decode"]["image"]


def test_with_ucx_workers_see_all_gpus_and_share_namespaces(write: Write) -> None:
    override = ComposeOverride(load_deployment(write(GPU.replace("k2v2", "k2v2\nlink: ucx"))), ROOT)
    worker = override.data()["services"]["a-decode-1"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert (device["count"], worker["environment"]["PACKHORSE_DEVICE"]) == ("all", "cuda:1")
    assert (worker["ipc"], worker["pid"], worker["init"]) == ("service:shm", "service:shm", False)
    assert set(worker["depends_on"]) == {"keys", "scheduler", "shm"}
    assert override.files == ["compose.yaml", "compose.ucx.yaml"]
    assert "--file compose.yaml --file compose.ucx.yaml --file out.yaml up" in override.text("in.yaml", "out.yaml")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("[cpu]}", "['cuda:0', 'cuda:1']}", "a-prefill-0 has tp=2"),
        ("name: a-decode-0", "name: decode", "the worker's name 'decode' is a service of the compose files"),
        ("data_bind: null", "data_bind: '0.0.0.0:1'", "a-decode-0.data_bind='0.0.0.0:1': compose.yaml says that"),
        ("gateway: {machine: a}", "gateway: {machine: a, port: 9000}", "gateway.port=9000: compose.yaml says that"),
    ],
)
def test_what_compose_cannot_do_is_named(write: Write, old: str, new: str, named: str) -> None:
    assert old in CPU
    with pytest.raises(ConfigError) as error:
        write_override(write(CPU.replace(old, new, 1)), ROOT, None)
    assert named in error.value.message


def test_workers_on_two_machines_and_foreign_folders_are_refused(write: Write, tmp_path: Path) -> None:
    more = CPU + "  - name: b\n    processes: [{name: q, role: prefill}]\n"
    with pytest.raises(ConfigError, match="workers on a, b; `up` and `compose` serve one machine"):
        write_override(write(more), ROOT, None)
    with pytest.raises(ConfigError, match=r"compose\.yaml: No such file"):
        write_override(write(CPU), tmp_path, None)
    (tmp_path / "compose.yaml").write_text("services: {prefill: {}}")
    with pytest.raises(ConfigError, match="has no service 'decode'"):
        write_override(write(CPU), tmp_path, None)
    with pytest.raises(ConfigError, match=r"/nowhere/x\.yaml: No such file"):
        write_override(write(CPU), ROOT, Path("/nowhere/x.yaml"))


@pytest.fixture
def planned(env_file: Path, write: Write, tmp_path: Path) -> Iterator[Stack]:
    """The CPU deployment on an engine."""
    out = tmp_path / "planned.yaml"
    write_override(write(CPU), ROOT, out)
    stack = Stack(env_file)
    stack.files.append(str(out))
    with running(stack, {"prefill": 1, "decode": 2}) as stack:
        yield stack


@pytest.mark.compose
@pytest.mark.timeout(2400)
def test_a_planned_deployment_runs_on_an_engine(planned: Stack) -> None:
    assert planned.containers("prefill") == planned.containers("decode") == []
    assert [len(planned.containers(name)) for name in ("a-prefill-0", "a-decode-0", "a-decode-1")] == [1, 1, 1]
    workers = {worker["info"]["worker_id"]: worker["info"] for worker in planned.get("/status")["workers"]}
    assert set(workers) == {"a-prefill-0", "a-decode-0", "a-decode-1"}
    assert workers["a-decode-1"]["capacity_pages"] == 2 * workers["a-decode-0"]["capacity_pages"]
    assert json.loads(complete(planned))["usage"]["completion_tokens"] == 24
