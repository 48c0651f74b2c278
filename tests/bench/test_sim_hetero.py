"""`bench scheduler --heterogeneous` in small: what it finds holds, and the table shows the gain."""

from __future__ import annotations

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.cli import app
from bench.sim_hetero import HeteroOptions, print_hetero, run_hetero
from scheduler.simulator import Slo

OPTIONS = HeteroOptions(
    targets=(("two-tier", 0.0),),
    cases=(("predicted", "oracle"),),
    kv_formats=("raw",),
    requests=150,
    seeds=1,
    slo=Slo(0.5, 0.05),
    attainments=(0.7, 1.0),
)


def test_a_rate_is_found_for_each_case_and_the_gain_is_shown() -> None:
    result = run_hetero(OPTIONS)
    base, bound, predicted = result["records"]
    assert [record["placement"] for record in (base, bound, predicted)] == [
        "round-robin",
        "bound-round-robin",
        "predicted",
    ]
    assert bound["slo_70_requests_per_second"] > 0
    assert predicted["slo_70_requests_per_second"] > 1.1 * base["slo_70_requests_per_second"] > 0
    assert predicted["mean_jct_seconds"] < base["mean_jct_seconds"]
    assert predicted["at_requests_per_second"] == base["slo_70_requests_per_second"]
    assert base["slo_100_requests_per_second"] == 0, "its slow workers fail some at any rate"
    console = Console(width=200, record=True, quiet=False)
    print_hetero(result, console)
    shown = console.export_text()
    for other in (base, bound):
        gain = predicted["slo_70_requests_per_second"] / other["slo_70_requests_per_second"] - 1
        assert f"{gain:+.0%} ({gain:+.0%} to {gain:+.0%})" in shown


@pytest.mark.parametrize(
    "other", [["--scale"], ["--policy", "fcfs"], ["--requests", "10"], ["--failures", "1"], ["--repeats", "1"]]
)
def test_it_stands_alone(other: list[str]) -> None:
    result = CliRunner().invoke(app, ["scheduler", "--heterogeneous", *other])
    assert result.exit_code == 2
    assert "stands alone; given beside it: --" in result.output
    assert other[0].removeprefix("--") in result.output
