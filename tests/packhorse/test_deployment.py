"""Deployment files: written by a plan, read back as they are, refused by name where they are wrong, and what runs on one machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from packhorse.config import build
from packhorse.deployment import Deployment, load_deployment, local_cluster, local_cluster_from, write_deployment
from packhorse.errors import ConfigError
from packhorse.launcher import UpConfig
from scheduler.planner import load_cluster

ROOT = Path(__file__).resolve().parents[2]
GOOD = """
version: 1
model: embedded
kv_format: k4v2
scheduler: {machine: a}
gateway: {machine: a, port: 0}
machines:
  - name: a
    processes:
      - {name: p, role: prefill, devices: [cpu]}
      - {name: d0, role: decode, devices: [cpu], nic_gbps: 12.5, max_jobs: 8, pool_bytes: 1000000}
      - {name: d1, role: decode, devices: ["cuda:1"], tp: 1, data_bind: "127.0.0.1:0"}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "deployment.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_what_is_written_is_read_back(write: Callable[[str], Path], tmp_path: Path) -> None:
    deployment = load_deployment(write(GOOD))
    write_deployment(deployment, tmp_path / "again.yaml", comment="why\n\nso")
    text = (tmp_path / "again.yaml").read_text()
    assert text.startswith("# why\n#\n# so\nversion: 1\n")
    assert "data_bind: null, advertise: null}" in text, "addresses are left as fields"
    assert load_deployment(tmp_path / "again.yaml") == deployment


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("role: prefill", "role: both", "machines[0].processes[0].role='both': Input should be 'prefill' or 'decode'"),
        (
            "devices: [cpu]}",
            "device: cpu}",
            "machines[0].processes[0].device is no field; allowed: name, role, devices, tp",
        ),
        ("machine: a}", "machine: b}", "scheduler.machine='b' is no machine; allowed: a"),
        ("kv_format: k4v2", "kv_format: k3v2", "kv_format='k3v2'"),
        ("version: 1", "version: 2", "version=2"),
        ("name: d1", "name: d0", "the name 'd0' is there twice"),
        ("tp: 1", "tp: 2", "d1: tp=2 does not fit its 1 devices"),
        ("tp: 1", "kv_format: raw", "d1: kv_format='raw' differs from the deployment's 'k4v2'"),
        ("role: prefill", "role: decode", "there is no prefill worker"),
        ("prefill, devices: [cpu]", "prefill, devices: ['cuda:1']", "device 'cuda:1' is given to 2 processes"),
        ("prefill, devices: [cpu]", "prefill, pool_bytes: 5", "p: pool_bytes is a field of decode workers alone"),
        ("nic_gbps: 12.5", "nic_gbps: 0", "machines[0].processes[1].nic_gbps=0: Input should be greater than 0"),
        ("devices: [cpu]}", "devices: [tpu]}", "machines[0].processes[0].devices[0]='tpu'"),
        (
            "prefill, devices: [cpu]",
            "prefill, devices: ['cuda:0', 'cuda:2']",
            "p has tp=2 (cuda:0, cuda:2); workers run on one",
        ),
    ],
)
def test_what_is_wrong_is_named(write: Callable[[str], Path], old: str, new: str, named: str) -> None:
    assert old in GOOD
    path = write(GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as error:
        load_deployment(path)
    assert str(path) in error.value.message
    assert named in error.value.message


def test_tensor_parallel_workers_can_be_read_where_they_are_only_looked_at(write: Callable[[str], Path]) -> None:
    path = write(GOOD.replace("prefill, devices: [cpu]", "prefill, devices: ['cuda:0', 'cuda:2']"))
    deployment = load_deployment(path, allow_tensor_parallel=True)
    with pytest.raises(ConfigError, match="p has tp=2"):
        local_cluster_from(deployment)


def test_a_local_deployment_gives_the_launcher_its_configuration_and_each_workers_fields(
    write: Callable[[str], Path],
) -> None:
    local = local_cluster_from(load_deployment(write(GOOD)), threads=1, restart=False)
    config = local.config
    assert (config.prefill, config.decode, config.kv_format, config.port, config.threads) == (1, 2, "k4v2", 0, 1)
    assert local.workers == {
        "prefill-0": {"device": "cpu"},
        "decode-0": {"device": "cpu", "nic_gbps": 12.5, "max_jobs": 8, "pool_bytes": 1000000},
        "decode-1": {"device": "cuda:1", "data_bind": "127.0.0.1:0"},
    }
    with pytest.raises(ConfigError, match="threads=0"):
        local_cluster_from(load_deployment(write(GOOD)), threads=0)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("scheduler: {machine: a", "scheduler: {bind: 'tcp://127.0.0.1:5600', machine: a", "scheduler.bind='tcp://127"),
        ("gateway: {machine: a", "gateway: {token_bind: 'tcp://127.0.0.1:5601', machine: a", "gateway.token_bind='tcp"),
        ("gateway: {machine: a", "gateway: {advertise: 10.0.0.1, machine: a", "gateway.advertise='10.0.0.1'"),
    ],
)
def test_addresses_that_the_launcher_would_not_heed_are_refused(
    write: Callable[[str], Path], old: str, new: str, named: str
) -> None:
    assert old in GOOD
    deployment = load_deployment(write(GOOD.replace(old, new)))
    with pytest.raises(ConfigError, match=named):
        local_cluster_from(deployment)


def test_workers_on_two_machines_are_not_local(write: Callable[[str], Path]) -> None:
    more = GOOD + "  - name: b\n    processes: [{name: q, role: prefill}]\n"
    with pytest.raises(ConfigError, match="workers on a, b"):
        local_cluster_from(load_deployment(write(more)))


def test_up_takes_a_file_or_flags_and_never_both(write: Callable[[str], Path]) -> None:
    path = write(GOOD)
    local = local_cluster(build(UpConfig, {"deployment": path, "api_key": "k"}))
    assert set(local.workers) == {"prefill-0", "decode-0", "decode-1"}
    assert local.config.api_key is not None
    assert local_cluster(build(UpConfig, {"decode": 3})).config.decode == 3
    with pytest.raises(ConfigError, match=r"--decode, --kv-format: the deployment file .* says that"):
        local_cluster(build(UpConfig, {"deployment": path, "decode": 3, "kv_format": "raw"}))


def plan_arguments(*more: str) -> list[str]:
    cluster, model = ROOT / "examples/clusters/two-tier.yaml", ROOT / "examples/models/llama-3.1-8b.json"
    return ["plan", str(cluster), "--model", str(model), "--workload", "1024:256", *more]


def test_the_command_prints_both_plans_and_writes_a_deployment_that_loads(packhorse, tmp_path: Path) -> None:
    out = tmp_path / "deployment.yaml"
    done = packhorse(*plan_arguments("--slo-ttft", "2", "--slo-tpot", "0.1", "--max-tp", "1", "--out", str(out)))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Best " in done.stdout
    assert "Runner-up " in done.stdout
    deployment = load_deployment(out)
    assert {worker.role for worker in deployment.workers()} == {"prefill", "decode"}
    assert all(len(machine.processes) <= 4 for machine in deployment.machines)
    planned = load_cluster(ROOT / "examples/clusters/two-tier.yaml").machines
    for machine, entry in zip(planned, deployment.machines, strict=True):
        shares = [process.nic_gbps for process in entry.processes]
        assert sum(filter(None, shares)) == pytest.approx(machine.nic_gbps, rel=1e-3), (
            "processes share their machine's NIC"
        )
    assert isinstance(deployment, Deployment)


def test_json_is_json_and_a_plan_with_tensor_parallelism_is_refused_by_the_loader(packhorse, tmp_path: Path) -> None:
    out = tmp_path / "deployment.yaml"
    clusters = tmp_path / "t4.yaml"
    clusters.write_text("machines: [{name: t, gpu: T4, gpus: 4}]")
    model = str(ROOT / "examples/models/llama-3.1-8b.json")
    done = packhorse("plan", str(clusters), "--model", model, "--workload", "512:64", "--json", "--out", str(out))
    data = json.loads(done.stdout)
    assert data["best"]["goodput"] > 0
    assert data["best"]["machines"][0]["prefill"]["tp"] == 2
    with pytest.raises(ConfigError, match="--max-tp 1"):
        load_deployment(out)
    assert load_deployment(out, allow_tensor_parallel=True).dtype == "float16", "a T4 has no bfloat16"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--kv-formats", "k9v9"], "'k9v9' is unknown; allowed: raw"),
        (["--slo-ttft", "-1"], "--slo-ttft=-1 must be above 0"),
        (["--slo-tpot", "nan"], "--slo-tpot=nan must be above 0"),
        (["--rate", "inf"], "--rate=inf must be above 0, and finite"),
        (["--workload", "none.csv"], "none.csv: No such file"),
        (["--model", "none.json"], "none.json: No such file"),
        (["--out", "/nowhere/at/all.yaml"], "/nowhere/at/all.yaml: No such file"),
    ],
)
def test_a_wrong_flag_is_one_line(packhorse, more: list[str], named: str) -> None:
    done = packhorse(*plan_arguments(*more))
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stderr.count("\n") == 1
