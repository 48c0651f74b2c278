"""`bench proof`: what each part runs and checks, on a small workload that needs no data; targets are judged by their sign."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench import sim_predictor, sim_proof
from bench.cli import app
from bench.scheduler import FIGURES
from bench.sim_proof import Check, Part, ProofOptions, Runs, run_proof
from bench.sim_proof_report import print_part
from packhorse.errors import ConfigError

KEYS = {"part", "workload", "policy", "predictor", "placement", "load", "seed", "requests", *FIGURES}


@pytest.fixture(autouse=True)
def few_lessons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim_predictor, "MOST_LESSONS", 64)


def small(*parts: str) -> ProofOptions:
    return ProofOptions(parts=parts, requests=60, seeds=2, lengths="synthetic", workload=("synthetic",))


def test_a_check_is_met_or_missed() -> None:
    assert Check("", 0.5, "<=", 0.5).met
    assert not Check("", 0.51, "<=", 0.5).met
    assert Check("", 2.1, ">=", 2.1).met
    assert not Check("", 2.0, ">=", 2.1).met


def test_the_policy_part_runs_where_fcfs_is_five_times_slower() -> None:
    seen: list[str] = []
    result = run_proof(small("policy"), lambda record: seen.append(record["policy"]), lambda part: None)
    records = result["records"]
    assert all(record.keys() >= KEYS for record in records)
    assert {record["seed"] for record in records} == {0, 1}
    assert len(seen) > len(records)  # the search for the rate
    rates = {record["requests_per_second"] for record in records if record["load"] is None}
    assert len(rates) == 1
    first, *others = result["checks"]
    assert first["limit"] == 0.55
    assert [check["limit"] for check in others] == [0.8, 0.8]


def test_the_tail_and_the_adversaries_are_checked_at_every_load() -> None:
    result = run_proof(small("tail", "adversarial"), ended=lambda part: None)
    assert sum(check["part"] == "tail" for check in result["checks"]) == 2 * len(sim_proof.TAIL_LOADS)
    assert sum(check["part"] == "adversarial" for check in result["checks"]) == 8 * len(sim_proof.ADVERSARIAL_LOADS)
    assert all(check["met"] == (check["measured"] <= check["limit"]) for check in result["checks"])


def test_pages_compare_each_format_at_its_best_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim_proof, "DEPLOYMENTS", ("a100-40gb",))
    monkeypatch.setattr(sim_proof, "BATCHES", (4, 8))
    monkeypatch.setattr(sim_proof, "_ROUNDS", 1)
    result = run_proof(small("pages"), ended=lambda part: None)
    assert {record["kv_format"] for record in result["records"]} == {"raw", "k2v2"}
    assert all("batch 8" in check["what"] for check in result["checks"])
    assert len(result["checks"]) == 3


def test_the_grid_runs_every_policy_and_blind_ones_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim_proof, "GRID_LOADS", (0.9,))
    records = run_proof(small("grid"), ended=lambda part: None)["records"]
    assert len(records) == 2 * (2 + 7 * 3)
    assert {record["predictor"] for record in records if record["policy"] == "fcfs"} == {"none"}


def test_targets_are_printed_with_their_verdicts() -> None:
    console = Console(width=120, record=True)
    print_part(Part("tail", [], [Check("p99", 1.2, "<=", 1.5), Check("wait", 70.0, "<=", 60.0)]), console)
    text = console.export_text()
    assert "met" in text
    assert "missed" in text


def test_a_rate_at_the_end_of_what_was_searched_is_a_bound() -> None:
    runs = Runs(small("pages"), lambda record: None)
    case, span = runs.case("fcfs"), (0.5, 1.1)
    saturation = runs.grid.saturation(case.workload, case.kv_format)
    found = {limit: runs.rate_at(case, limit, span, 1) for limit in (0.001, 1e6)}
    assert [rate.bound for rate in found.values()] == ["≤ ", "≥ "]
    assert found[0.001].rate == pytest.approx(0.5 * saturation, rel=0.02)
    assert str(found[1e6]) == f"≥ {found[1e6].rate:.1f}/s"
    middle = runs.run(runs.case("fcfs", rate=0.8 * saturation), 1)[0]["mean_jct_seconds"]
    assert runs.rate_at(case, middle, span, 1).bound == ""


def test_a_grid_of_a_missing_workload_is_refused_before_it_runs() -> None:
    seen: list[str] = []
    with pytest.raises(ConfigError, match="workload='nothing' is no file"):
        run_proof(
            ProofOptions(parts=("grid",), workload=("synthetic", "nothing")),
            lambda record: seen.append(record["policy"]),
        )
    assert not seen


@pytest.mark.parametrize("flag", ["--workload", "--plot"])
def test_flags_of_the_grid_are_refused_without_it(flag: str) -> None:
    outcome = CliRunner().invoke(app, ["proof", "--part", "tail", flag, "somewhere"])
    assert outcome.exit_code == 2
    assert f"{flag} has no effect without --part grid" in outcome.output


def test_the_command_writes_records_and_refuses_unknown_parts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="part='luck'"):
        ProofOptions(parts=("luck",))
    path = tmp_path / "proof.json"
    args = [
        "proof",
        "--part",
        "grid",
        "--workload",
        "synthetic",
        "--requests",
        "5",
        "--seeds",
        "1",
        "--json",
        str(path),
    ]
    outcome = CliRunner().invoke(app, args)
    assert outcome.exit_code == 0, outcome.output
    assert {record["part"] for record in json.loads(path.read_text())["records"]} == {"grid"}
