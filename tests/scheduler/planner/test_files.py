"""Cluster and workload files: what they say is taken as it is, and what is wrong is named with file, field and what is allowed."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from packhorse.errors import ConfigError
from scheduler.planner import known_devices, load_cluster, load_workload
from scheduler.planner.devices import sources

Write = Callable[..., Path]
GOOD = "machines: [{name: a, gpu: A10G, gpus: 4}]"


def test_the_example_clusters_load(clusters: Path) -> None:
    mild, strong = load_cluster(clusters / "two-tier.yaml"), load_cluster(clusters / "mixed.yaml")
    slow, alike = load_cluster(clusters / "slow-network.yaml"), load_cluster(clusters / "alike.yaml")
    assert [machine.name for machine in mild.machines] == ["a100-0", "a100-1", "a10g-0", "a10g-1"]
    assert len({machine.gpu for machine in strong.machines}) == 5
    assert {(machine.gpu, machine.gpus, machine.nic_gbps) for machine in slow.machines} == {("A100-80GB", 4, 25.0)}
    assert {(machine.gpu, machine.gpus, machine.nic_gbps) for machine in alike.machines} == {("A100-80GB", 4, 400.0)}


def test_defaults_counts_and_own_devices(write: Write) -> None:
    path = write(
        """
        link: ucx
        machines:
          - {name: a, gpu: A10G, gpus: 4, count: 2}
          - {name: b, gpu: box, gpus: 1, nic_gbps: 7, host: 10.0.0.9}
        devices:
          box: {memory_gb: 10, bandwidth_gb_per_s: 100, fp16_tflops: 10, sms: 10, boost_ghz: 1, interconnect_gb_per_s: 1, nic_gbps: 1}
        assumptions: {prefill_flops: 0.5}
        """
    )
    cluster = load_cluster(path)
    assert [(m.name, m.host, m.nic_gbps) for m in cluster.machines] == [
        ("a-0", "a-0", 50),
        ("a-1", "a-1", 50),
        ("b", "10.0.0.9", 7),
    ]
    assert cluster.link == "ucx"
    assert cluster.machines[0].assume.prefill_flops == 0.5
    assert cluster.machines[2].device.codes_tops == 10
    assert (cluster.machines[0].kind, cluster.num_gpus) == (cluster.machines[1].kind, 9)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("machines: [{name: a, gpu: A10G, gpus: 4}", "line 1, column"),
        (
            "machines: [{name: a, gpu: A100, gpus: 4}]",
            "machines[0].gpu='A100' is unknown; allowed: A100-40GB, A100-80GB",
        ),
        (
            "machines: [{name: a, gpu: T4, gpus: 4, nics: 9}]",
            "machines[0].nics is no field; allowed: name, gpu, gpus, nic_gbps",
        ),
        ("machines: [{name: a, gpu: T4, gpus: 0}]", "machines[0].gpus=0: Input should be greater than or equal to 1"),
        ("machines: [{name: a, gpu: T4}]", "machines[0].gpus is missing"),
        ("machines: [{name: a, gpu: T4, gpus: 1, nic_gbps: -3}]", "machines[0].nic_gbps=-3: Input should be greater"),
        (
            "machines: [{name: a, gpu: T4, gpus: 1, nic_gbps: .inf}]",
            "machines[0].nic_gbps=inf: Input should be a finite",
        ),
        ("assumptions: {reserve_gb: .inf}\n" + GOOD, "assumptions.reserve_gb=inf: Input should be a finite"),
        ("devices: {x: {memory_gb: .inf}}\n" + GOOD, "devices.x.memory_gb=inf: Input should be a finite"),
        ("machines: []", "machines=[]"),
        ("link: pigeon\n" + GOOD, "link='pigeon': Input should be 'zmq', 'tcp' or 'ucx'"),
        ("colour: red\n" + GOOD, "colour is no field; allowed: link, machines, devices, assumptions"),
        ("assumptions: {speed: 2}\n" + GOOD, "assumptions.speed is no field; allowed: memory_share"),
        ("devices: {x: {memory: 2}}\n" + GOOD, "devices.x.memory_gb is missing"),
        ("machines: [{name: a, gpu: T4, gpus: 1}, {name: a, gpu: L4, gpus: 1}]", "the name 'a' is there twice"),
        ("machines: [{name: a, gpu: T4, gpus: 1, count: 2, host: h}]", "count=2 machines cannot share host='h'"),
        (GOOD + "\n" + GOOD, "line 2, column 1: the key 'machines' is there twice"),
        ("", "holds nothing, not fields; allowed: link, machines"),
        ("- a", "holds list"),
        ("machines: !!python/object:os.system {}", "could not determine a constructor"),
        ("&a [*a]", "holds list"),
    ],
)
def test_what_is_wrong_with_a_cluster_is_named(write: Write, text: str, named: str) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as error:
        load_cluster(path)
    assert str(path) in error.value.message
    assert named in error.value.message


def test_a_missing_file_and_foreign_bytes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_cluster(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_cluster(tmp_path / "bytes.yaml")


def test_every_figure_of_every_device_has_a_source() -> None:
    for name, device in known_devices().items():
        assert all(len(source) > 10 for source in sources(name).values())
        assert set(sources(name)) | {"int8_tops"} == set(type(device).model_fields)
    assert {"A100-80GB", "H100", "L4", "T4", "A10G"} <= set(known_devices())


def test_fixed_lengths_and_a_rate() -> None:
    workload = load_workload("1024:256", rate=3.0)
    assert (workload.prompts.tolist(), workload.outputs.tolist(), workload.rate) == ([1024], [256], 3.0)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ("{p50: 1000, p95: 4000}", {"p50": 1000, "p95": 4000}),
        ("{mean: 1155, p95: 4083}", {"mean": 1155, "p95": 4083}),
        ("{mean: 211, p50: 129}", {"mean": 211, "p50": 129}),
        ("{mean: 300}", {"mean": 300, "p50": 300, "p95": 300}),
        ("{p50: 100, p99: 800, max: 500}", {"p50": 100, "max": 500}),
    ],
)
def test_lengths_have_the_given_figures(write: Write, figures: str, expected: dict[str, float]) -> None:
    path = write(f"prompt_tokens: {figures}\noutput_tokens: {figures}\nrequests_per_second: 2\n")
    workload = load_workload(str(path))
    for lengths in (workload.prompts, workload.outputs):
        have = {"mean": lengths.mean(), "max": lengths.max()} | {
            f"p{p}": np.quantile(lengths, p / 100) for p in (50, 95)
        }
        assert {name: have[name] for name in expected} == pytest.approx(expected, rel=0.03)
    if workload.prompts.std() > 0:
        assert abs(np.corrcoef(workload.prompts, workload.outputs)[0, 1]) < 0.05
    assert workload.rate == 2


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prompt_tokens: {mean: 5}", "output_tokens is missing"),
        ("{prompt_tokens: {}, output_tokens: {mean: 5}}", "prompt_tokens={}: needs one or two of mean, p50"),
        (
            "{prompt_tokens: {mean: 10, p50: 20}, output_tokens: {mean: 5}}",
            "no log-normal distribution has mean=10 and p50=20",
        ),
        (
            "{prompt_tokens: {mean: 1, p95: 100}, output_tokens: {mean: 5}}",
            "no log-normal distribution has mean=1 and p95=100",
        ),
        ("{prompt_tokens: {p50: 9, p90: 3}, output_tokens: {mean: 5}}", "no log-normal distribution has p50=9"),
        ("{prompt_tokens: {mean: .inf}, output_tokens: {mean: 5}}", "prompt_tokens.mean=inf: Input should be"),
        (
            "{prompt_tokens: {p50: 9, p95: 1.0e+300}, output_tokens: {mean: 5}}",
            "prompt_tokens.p95=1e+300: Input should be",
        ),
        (
            "{prompt_tokens: {mean: 9}, output_tokens: {mean: 5}, requests_per_second: .inf}",
            "requests_per_second=inf: Input should be a finite number",
        ),
        ("{prompt_tokens: {p42: 9}, output_tokens: {mean: 5}}", "prompt_tokens.p42 is no field; allowed: mean, p50"),
    ],
)
def test_what_is_wrong_with_figures_is_named(write: Write, text: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_workload(str(write(text)))
    assert named in error.value.message


def test_traces_give_pairs_and_the_rate(write: Write, tmp_path: Path) -> None:
    azure = write(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:48.6805900,396,109\n",
        "a.csv",
    )
    workload = load_workload(str(azure))
    assert (workload.prompts.tolist(), workload.outputs.tolist(), workload.rate) == (
        [374, 396],
        [44, 109],
        pytest.approx(0.5),
    )
    rows = [{"timestamp": 1000 * i, "input_length": 10 + i, "output_length": 5} for i in range(5)]
    packed = tmp_path / "m.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))
    workload = load_workload(str(packed))
    assert (workload.prompts.tolist(), workload.rate) == ([10, 11, 12, 13, 14], pytest.approx(1.0))
    vidur = write("num_prefill_tokens,num_decode_tokens\n5.0,7\n", "v.csv")
    assert load_workload(str(vidur)).rate is None


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("a.csv", "ContextTokens\n5\n", "line 2: has none of GeneratedTokens"),
        ("a.csv", "ContextTokens,GeneratedTokens\n5,x\n", "line 2: GeneratedTokens='x' is not a number of tokens"),
        ("a.csv", "ContextTokens,GeneratedTokens\n", "holds no requests"),
        ("a.csv", "ContextTokens,GeneratedTokens\n5,0\n", "line 2: GeneratedTokens='0' is not a number of tokens"),
        ("a.csv", "ContextTokens,GeneratedTokens\n5.7,5\n", "line 2: ContextTokens='5.7' is not a number of tokens"),
        ("a.csv", "ContextTokens,GeneratedTokens\nnan,5\n", "line 2: ContextTokens='nan' is not a number of tokens"),
        (
            "a.jsonl",
            '{"input_length": 5, "output_length": true}\n',
            "line 1: output_length=True is not a number of tokens",
        ),
        ("a.jsonl", '{"input_length": 5, "output_length": 1e400}\n', "line 1: output_length=inf is not a number of"),
        (
            "a.jsonl",
            '{"input_length": 5, "output_length": 5, "timestamp": NaN}\n',
            "line 1: timestamp=nan is not a finite",
        ),
        (
            "a.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\ninf,5,5\n",
            "line 2: TIMESTAMP='inf' is not a finite number",
        ),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,5,5\n", "line 2: TIMESTAMP='noon' is neither"),
        ("a.jsonl", '{"input_length": 5, "output_length": 5}\n[]\n', "line 2: holds list"),
        ("a.jsonl", "{\n", "line 1: is not JSON"),
        ("a.csv.gz", "no gzip", "Not a gzipped file"),
        ("a.txt", "", "is not a file (.csv, .csv.gz, .jsonl, .jsonl.gz, .yaml) or PROMPT:OUTPUT"),
    ],
)
def test_what_is_wrong_with_a_trace_is_named(write: Write, name: str, text: str, named: str) -> None:
    path = write(text, name)
    with pytest.raises(ConfigError) as error:
        load_workload(str(path))
    assert str(path) in error.value.message
    assert named in error.value.message


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"")[:10] + b"no deflated data")
    with pytest.raises(ConfigError, match=r"a\.csv\.gz: Error -3 while decompressing"):
        load_workload(str(path))


@pytest.mark.parametrize("text", ["0:5", "5:0", "9" * 400 + ":1", "1:" + "9" * 5000])
def test_lengths_that_no_request_has_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="both lengths must be from 1 to 1,000,000,000"):
        load_workload(text)


@pytest.mark.skipif("PACKHORSE_DATA" not in os.environ, reason="PACKHORSE_DATA is not set")
def test_a_real_trace() -> None:
    workload = load_workload(os.environ["PACKHORSE_DATA"] + "/traces/azure2023_conv_first_half.csv")
    assert workload.rate == pytest.approx(5.5, rel=0.05)
    assert workload.prompts.mean() == pytest.approx(1200, rel=0.1)
