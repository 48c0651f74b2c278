"""Interleaved timing under a fake clock, options with several values, and the plot's figures."""

import sys

import pytest

from bench.kernel_timing import LEAST_REPEATS, CpuClock, make_clock, spread, time_interleaved
from bench.many_values import spread as spread_values
from bench.plot import check_plot, speedups, write_plot
from bench.roofline import cache_bytes, measure_machine
from packhorse.errors import ConfigError


def test_rounds_interleave_in_an_order_that_the_seed_gives():
    def calls(seed):
        called = []
        runs = {name: lambda name=name: called.append(name) for name in "abc"}
        time_interleaved(runs, lambda run: run() or 1.0, 6, seed, 1e9)
        return called

    first = calls(0)
    assert first == calls(0) != calls(1)
    rounds = [first[i : i + 3] for i in range(0, 18, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len({tuple(order) for order in rounds}) > 1


def test_a_slow_function_sits_out_when_its_budget_is_used_up():
    counts = {"slow": 0, "fast": 0}
    runs = {name: lambda name=name: counts.update({name: counts[name] + 1}) or name for name in counts}
    times = time_interleaved(runs, lambda run: 1.0 if run() == "slow" else 0.01, 20, 0, 0.5)
    assert counts == {"slow": LEAST_REPEATS, "fast": 20}
    assert (times["slow"].median, times["fast"].median) == (1.0, 0.01)


def test_spread_interpolates():
    found = spread([5.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    assert (found.p20, found.median, found.p80) == pytest.approx((2.0, 3.5, 5.0))
    assert spread([2.0]).p80 == 2.0


def test_the_clock_times_the_call_alone(monkeypatch):
    monkeypatch.setattr("bench.kernel_timing.cache_bytes", lambda device: 1024)
    times = iter((10.0, 10.5))
    monkeypatch.setattr("bench.kernel_timing.time.perf_counter", lambda: next(times))
    assert CpuClock()(lambda: None) == 0.5


def test_warm_caches_are_those_of_the_same_call(monkeypatch):
    monkeypatch.setattr("bench.kernel_timing.cache_bytes", lambda device: 1024)
    called = []

    def time():
        called.append("time")
        return float(len(called))

    monkeypatch.setattr("bench.kernel_timing.time.perf_counter", time)
    assert make_clock("cpu", "warm")(lambda: called.append("run")) == 2.0
    assert called == ["run", "time", "run", "time"]


def test_the_machine_is_measured(monkeypatch):
    monkeypatch.setattr("bench.roofline.cache_bytes", lambda device: 1 << 16)
    monkeypatch.setattr("bench.roofline.MATRIX_SIDE", {"cpu": 64})
    monkeypatch.setattr("bench.roofline.SECONDS_PER_LOOP", 0.0)
    machine = measure_machine("cpu")
    assert machine.copy_bytes_per_second > 0
    assert machine.rates["float32"] > 0
    assert machine.rates["int8"] is None or machine.rates["int8"] > 0
    assert cache_bytes("cpu") >= 1 << 18


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--a", "1", "2,3", "--b", "x"], ["--a", "1", "--a", "2", "--a", "3", "--b", "x"]),
        (["--a=1,2", "3"], ["--a", "1", "--a", "2", "--a", "3"]),
        (["--b", "x,y", "z"], ["--b", "x,y", "z"]),
        (["--a", "--b", "x"], ["--a", "--b", "x"]),
        (["--b", "x", "--a"], ["--b", "x", "--a"]),
        (["--unknown", "1", "2"], ["--unknown", "1", "2"]),
    ],
)
def test_values_are_spread_over_repeated_flags(given, expected):
    assert spread_values(given, {"--a": True, "--b": False}) == expected


def record(impl, context, seconds, fmt="k2v2", op="decode"):
    keys = {"heads": 4, "kv_heads": 2, "head_dim": 64}
    return {"op": op, "impl": impl, "format": fmt, "context": context, "batch": 1, "median_seconds": seconds, **keys}


def test_the_plot_shows_speedups_over_sdpa_in_float32(tmp_path):
    records = [
        *(record("sdpa_f32", context, context / 1e6, fmt) for fmt in ("k2v2", "k4v4") for context in (1024, 4096)),
        *(record("ours", context, context / 1e7, fmt) for fmt in ("k2v2", "k4v4") for context in (1024, 4096)),
        record("ours", 1024, 1.0, op="close_pages"),
    ]
    panels = speedups(records)
    assert list(panels) == [("decode", 1)]
    assert set(panels["decode", 1]) == {("sdpa_f32", ""), ("ours", "k2v2"), ("ours", "k4v4")}
    assert dict(panels["decode", 1]["ours", "k2v2"]) == pytest.approx({1024: 10.0, 4096: 10.0})
    pytest.importorskip("matplotlib")
    result = {"records": records, "machine": {"cpu": "a processor", "threads": 2}, "caches": "cold"}
    assert [path.suffix for path in write_plot(tmp_path / "k.svg", result)] == [".png", ".svg"]


def test_a_plot_without_its_baseline_or_its_folder_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    machine = {"cpu": "a processor", "threads": 2}
    with pytest.raises(ConfigError, match="no case was measured with sdpa_f32"):
        write_plot(tmp_path / "k.png", {"records": [record("ours", 1024, 1.0)], "machine": machine, "caches": "cold"})
    with pytest.raises(ConfigError, match="plot="):
        write_plot(
            tmp_path / "none" / "k.png",
            {"records": [record("sdpa_f32", 1024, 1.0)], "machine": machine, "caches": "cold"},
        )


def test_a_missing_matplotlib_is_said_before_measuring(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"plot needs matplotlib: pip install 'packhorse\[plot\]'"):
        check_plot(tmp_path / "k.png")
