"""`bench scheduler`: the grid, its records and tables; the same seed gives the same records; what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.cli import app
from bench.scheduler import FIGURES, run_saturation, run_scheduler
from bench.sim_options import SchedulerOptions
from bench.sim_report import print_saturation, print_scheduler, seeds_together, spread
from bench.sim_scale import ScaleOptions, print_scale, run_scale
from packhorse.errors import ConfigError
from scheduler.simulator import Slo

SMALL = SchedulerOptions(requests=120, seeds=2, load=(0.6, 1.2), policy=("fcfs", "ssjf"), predictor=("oracle",))
KEYS = {"workload", "policy", "predictor", "placement", "load", "seed", "requests", *FIGURES}


def test_a_grid_gives_a_record_for_each_case_and_seed() -> None:
    records = run_scheduler(SMALL)["records"]
    assert len(records) == 2 * 2 * 2
    assert all(record.keys() >= KEYS for record in records)
    assert {(record["policy"], record["load"], record["seed"]) for record in records} == {
        (policy, load, seed) for policy in SMALL.policy for load in SMALL.load for seed in (0, 1)
    }
    assert all(record["completed"] == 120 for record in records)
    rates = {record["load"]: record["requests_per_second"] for record in records}
    assert rates[1.2] == pytest.approx(2 * rates[0.6])


def test_the_same_seed_gives_the_same_records_and_another_does_not() -> None:
    options = replace(SMALL, policy=("ssjf",), predictor=("percentile",), load=(1.2,))
    first, second = (run_scheduler(options)["records"] for _ in range(2))
    assert first == second
    assert first[0]["mean_jct_seconds"] != first[1]["mean_jct_seconds"]


def test_knowing_lengths_helps_where_jobs_queue() -> None:
    options = replace(SMALL, requests=400, seeds=1, load=(1.3,), workload=("synthetic",))
    fcfs, ssjf = run_scheduler(options)["records"]
    assert ssjf["mean_jct_seconds"] < fcfs["mean_jct_seconds"]


def test_more_pages_carry_more() -> None:
    """A batch limit that pages do not bind is the same for both formats; without it, packed pages hold more jobs."""
    options = replace(SMALL, policy=("fcfs",), predictor=("none",), kv_format=("raw", "k2v2"), seeds=1, load=(1.0,))
    raw, packed = run_scheduler(replace(options, cluster="a100-40gb", max_batch=128))["records"]
    assert packed["requests_per_second"] > 1.2 * raw["requests_per_second"]


def test_a_given_rate_is_the_rate() -> None:
    (record,) = run_scheduler(replace(SMALL, rate=(3.0,), seeds=1, policy=("fcfs",)))["records"]
    assert record["load"] is None
    assert record["requests_per_second"] == 3.0
    assert record["duration_seconds"] > 120 / 3.0 * 0.8


def test_named_devices_are_known_from_the_start() -> None:
    mixed = str(Path(__file__).parents[2] / "examples" / "clusters" / "mixed.yaml")
    options = replace(SMALL, seeds=1, load=(0.8,), policy=("fcfs",), placement=("predicted",), cluster=mixed)
    (learned,), (known,) = (run_scheduler(replace(options, named_devices=on))["records"] for on in (False, True))
    assert learned["requests_per_second"] == known["requests_per_second"]
    assert learned["mean_jct_seconds"] != known["mean_jct_seconds"]


def test_prompts_that_begin_alike_are_sent_once_unless_told_otherwise(tmp_path: Path) -> None:
    trace = tmp_path / "chat.jsonl"
    rows = [{"input_length": 512 * n, "output_length": 20, "hash_ids": list(range(n))} for n in (1, 2, 3, 4)] * 10
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = SchedulerOptions(workload=(str(trace),), requests=40, rate=(2.0,))
    cached, sent = (run_scheduler(replace(options, prefix_cache=on))["records"][0] for on in (True, False))
    assert cached["held_share"] > 0.7
    assert sent["held_share"] == 0
    assert cached["gigabytes_shipped"] == pytest.approx((1 - cached["held_share"]) * sent["gigabytes_shipped"])
    flags = [
        "--workload",
        str(trace),
        "--requests",
        "40",
        "--rate",
        "2",
        "--no-prefix-cache",
        "--json",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, ["scheduler", *flags])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out").read_text())["records"] == [sent]


def test_all_stands_for_every_name() -> None:
    assert "fcfs" in SchedulerOptions(policy=("all",)).policy
    assert len(SchedulerOptions(policy=("all",)).policy) > 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"policy": ("best",)}, "policy='best'"),
        ({"placement": ("nearest",)}, "placement='nearest'"),
        ({"predictor": ("psychic",)}, "predictor='psychic'"),
        ({"kv_format": ("k3v3",)}, "kv_format='k3v3'"),
        ({"load": (0.0,)}, "load=0.0"),
        ({"load": (float("inf"),)}, "load=inf"),
        ({"rate": (float("nan"),)}, "rate=nan"),
        ({"failure_seconds": float("inf")}, "failure_seconds=inf"),
        ({"slo": Slo(ttft_seconds=float("nan"))}, "slo_ttft=nan"),
        ({"slo": Slo(tpot_seconds=-1.0)}, "slo_tpot=-1.0"),
        ({"requests": 0}, "requests=0"),
        ({"arrivals": "bursty"}, "arrivals='bursty'"),
        ({"load_of": "k9"}, "load_of='k9'"),
        ({"tool_pauses": 1.5}, "tool_pauses=1.5"),
        ({"tool_pauses": float("nan")}, "tool_pauses=nan"),
    ],
)
def test_wrong_options_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SchedulerOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"workload": ("nothing",)}, {"cluster": "nowhere"}])
def test_unknown_names_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="is no"):
        run_scheduler(replace(SMALL, **wrong))  # type: ignore[arg-type]


def test_the_command_prints_a_table_and_writes_records(tmp_path: Path) -> None:
    file = tmp_path / "records.json"
    arguments = ["scheduler", "--requests", "60", "--seeds", "2", "--load", "0.5", "1.1", "--json", str(file)]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "fcfs" in done.output
    assert "±" in done.output
    assert len(json.loads(file.read_text())["records"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--policy best", "policy='best' is not one of"),
        ("--scale --load 0.5", "--scale stands alone; given beside it: --load"),
        ("--scale --against-live", "--scale stands alone; given beside it: --against-live"),
        ("--saturation --seeds 2 --plot .", "--saturation has no use for --seeds, --plot"),
        ("--load 0.5 --rate 3", "--rate stands instead of --load; given are both"),
        ("--load-of raw --rate 3", "--rate stands instead of --load-of; given are both"),
        ("--repeats 2", "--repeats has no effect without --against-live"),
        ("--failure-seconds 9", "--failure-seconds has no effect without --failures"),
        ("--json /nowhere/at/all.json", "json=/nowhere/at/all.json: no such folder"),
        ("--scale --json /", "json=/: is a folder, not a file"),
        ("--max-batch 100000000", "bytes hold no page beside 100000000 residual buffers"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: str, message: str) -> None:
    done = CliRunner().invoke(app, ["scheduler", *arguments.split()])
    assert done.exit_code == 2
    assert "error: " in done.output
    assert message in done.output


def test_seeds_of_a_case_are_put_together() -> None:
    records = run_scheduler(replace(SMALL, requests=30))["records"]
    assert [len(case) for case in seeds_together(records)] == [2] * 4
    assert spread([1.0, 2.0, 6.0]) == (3.0, 2.5)
    print_scheduler({"records": records}, Console(quiet=True))


def test_saturation_is_compared_with_the_first_placement() -> None:
    options = replace(SMALL, placement=("round-robin", "least-loaded"), policy=("fcfs",))
    first, second = run_saturation(options)["records"]
    assert first["of_the_first"] == 1.0
    assert second["requests_per_second"] == pytest.approx(first["requests_per_second"], rel=0.02)  # one pair: no choice
    print_saturation({"records": [first, second]}, Console(quiet=True))


def test_scale_counts_its_time() -> None:
    result = run_scale(ScaleOptions(requests=2000, workers=50))
    assert result["figures"]["completed"] == 2000
    assert result["processor_seconds"] > 0
    print_scale(result, Console(quiet=True))


def test_twenty_thousand_requests_over_a_hundred_workers_are_all_served() -> None:
    assert run_scale(ScaleOptions(requests=20_000, workers=100))["figures"]["completed"] == 20_000
