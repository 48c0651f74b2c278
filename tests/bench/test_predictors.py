from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.predictors import PredictorOptions, read_lengths, run_predictors, scores
from packhorse.errors import ConfigError
from scheduler.predictor.base import Prediction


@pytest.fixture
def lengths_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    kinds = {"Name a thing that is": 8, "Explain to me why there is": 90, "Write a long story about": 300}
    rows = []
    for number in range(400):
        words, tokens = list(kinds.items())[int(rng.integers(3))]
        length = int(tokens * np.exp(0.2 * rng.standard_normal())) + 1
        rows.append({"prompt": f"{words} number {number}.", "output_tokens": {"t0.0": length, "t0.3": length + 1}})
    rows.append({**rows[0], "output_tokens": {"t0.0": 1, "t0.3": 1}})
    path = tmp_path / "lengths.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_every_part_on_a_small_file(lengths_file: Path) -> None:
    options = PredictorOptions(data=lengths_file, folds=2, stored=1500)
    result = run_predictors(options)
    rows = {row["predictor"]: row for row in result["held_out"]}
    assert rows["oracle"]["mae"] == 0
    assert rows["oracle"]["tau"] > 0.99
    assert rows["percentile"]["tau"] == 0
    assert rows["learned"]["tau"] > 0.6
    assert rows["learned"]["mae"] < 0.4 * rows["percentile"]["mae"]
    assert [w["from"] for w in result["online"][0]["windows"]] == [0, 250]
    assert "oracle" not in {row["predictor"] for row in result["online"]}
    assert result["speed"]["stored"] == 1500
    assert result["refine"][0]["jobs"] > 0
    assert result["jobs"] == 400, "a prompt that is there twice counts once"


def test_scores() -> None:
    said = [Prediction.certain(n, "test") for n in (10, 20, 30, 40)]
    found = scores(said, np.array([10, 26, 30, 1]))
    assert found["mae"] == pytest.approx(45 / 4)
    assert found["within_25"] == 0.75
    assert found["cover_p10_p90"] == 0.5


def test_the_command_prints_and_writes(lengths_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    arguments = [
        "predictors",
        "--data",
        str(lengths_file),
        "--predictors",
        "regressor",
        "--part",
        "held_out",
        "--folds",
        "1",
    ]
    outcome = CliRunner().invoke(app, [*arguments, "--tokens", "words", "--json", str(out)])
    assert outcome.exit_code == 0, outcome.output
    assert "regressor" in outcome.output
    assert json.loads(out.read_text())["held_out"][0]["predictor"] == "regressor"


def test_bad_options_are_named(lengths_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="predictors='best'"):
        PredictorOptions(predictors=("best",))
    with pytest.raises(ConfigError, match="folds=9"):
        PredictorOptions(folds=9)
    with pytest.raises(ConfigError, match="tokens='bytes'"):
        PredictorOptions(tokens="bytes")
    with pytest.raises(ConfigError, match=r"missing\.jsonl: No such file"):
        read_lengths(PredictorOptions(data=tmp_path / "missing.jsonl"))
    with pytest.raises(ConfigError, match="output_tokens with t9 and"):
        read_lengths(PredictorOptions(data=lengths_file, column="t9"))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "0 different prompts; at least 10 are needed"),
        ('{"prompt": 5, "output_tokens": {"t0.0": 5, "t0.3": 5}}', "request 1: prompt=5 is no text"),
        ('{"prompt": "a", "output_tokens": {"t0.0": NaN, "t0.3": 5}}', "request 1: t0.0=nan is no number of tokens"),
        ('{"prompt": "a", "output_tokens": {"t0.0": 5, "t0.3": -1}}', "request 1: t0.3=-1 is no number of tokens"),
        ('{"prompt": "a", "output_tokens": {"t0.0": 9e30, "t0.3": 1}}', "request 1: t0.0=9e"),
    ],
)
def test_what_is_wrong_with_the_data_is_named(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "lengths.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=named):
        run_predictors(PredictorOptions(data=path))


def test_a_damaged_archive_and_a_negative_seed_are_named(tmp_path: Path) -> None:
    path = tmp_path / "lengths.jsonl.gz"
    path.write_bytes(gzip.compress(b"")[:10] + b"no deflated data")
    with pytest.raises(ConfigError, match="Error -3 while decompressing"):
        run_predictors(PredictorOptions(data=path))
    with pytest.raises(ConfigError, match="seed=-1 is negative"):
        PredictorOptions(seed=-1)
