"""The plots of `bench scheduler`: which lines there are, and what is said without matplotlib."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bench.scheduler import run_scheduler
from bench.sim_options import SchedulerOptions
from bench.sim_plot import check_plot, series, write_plots
from packhorse.errors import ConfigError

SMALL = SchedulerOptions(requests=40, seeds=2, load=(1.1, 0.6), policy=("fcfs", "ssjf"), predictor=("none", "oracle"))
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


def test_a_line_for_each_policy_and_predictor() -> None:
    lines = series(run_scheduler(SMALL)["records"])
    assert set(lines) == {"fcfs", "ssjf", "fcfs (oracle)", "ssjf (oracle)"}
    for cases in lines.values():
        assert [case[0]["load"] for case in cases] == [0.6, 1.1]
        assert all(len(case) == 2 for case in cases)


@pytest.mark.skipif(HAS_MATPLOTLIB, reason="matplotlib is installed")
def test_without_matplotlib_it_says_so_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="matplotlib"):
        check_plot(tmp_path / "plots")


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="matplotlib is not installed")
def test_pictures_are_written(tmp_path: Path) -> None:
    paths = write_plots(tmp_path / "plots", run_scheduler(SMALL))
    assert {path.suffix for path in paths} == {".png", ".svg"}
    assert all(path.stat().st_size > 1000 for path in paths)
