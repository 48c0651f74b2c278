"""The plots of `bench scheduler`: mean and p99 JCT against load, one line for each policy and predictor. Needs matplotlib."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.sim_report import Record, seeds_together, spread
from packhorse.errors import ConfigError

_FIGURE = ("workload", "kv_format", "placement", "cluster")
_PANELS = (
    ("mean_jct_seconds", "mean JCT (s)"),
    ("p99_jct_seconds", "p99 JCT (s)"),
    ("mean_ttft_seconds", "mean TTFT (s)"),
)


def check_plot(folder: Path) -> None:
    """Raises ConfigError where matplotlib is missing or the folder cannot be made, before anything is simulated."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("plot needs matplotlib: pip install 'packhorse[plot]'", param="plot") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"plot={folder}: {error.strerror}", param="plot") from error


def write_plots(folder: Path, result: dict[str, Any]) -> list[Path]:
    """One PNG and one SVG for each workload, format, placement and cluster; returns their paths."""
    check_plot(folder)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def key(record: Record) -> list[str]:
        return [str(record[name]) for name in _FIGURE]

    paths = []
    for names, records in groupby(sorted(result["records"], key=key), key=key):
        figure = Figure(figsize=(5.0 * len(_PANELS), 4.4), dpi=150, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        chosen = series(list(records))
        for axes, (figure_key, label) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
            _draw(axes, chosen, figure_key, label)
        figure.suptitle(" · ".join(names), fontsize=9)
        stem = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(names[:3]))
        for suffix in (".png", ".svg"):
            paths.append(folder / f"{stem}{suffix}")
            figure.savefig(paths[-1])
    return paths


def series(records: list[Record]) -> dict[str, list[list[Record]]]:
    """The cases of each line, by its label, in order of their rate."""
    lines: dict[str, list[list[Record]]] = {}
    ordered = sorted(records, key=lambda r: (r["policy"], r["predictor"], r["requests_per_second"], r["seed"]))
    for case in seeds_together(ordered):
        label = case[0]["policy"] + ("" if case[0]["predictor"] == "none" else f" ({case[0]['predictor']})")
        lines.setdefault(label, []).append(case)
    return lines


def _draw(axes: Any, lines: dict[str, list[list[Record]]], key: str, label: str) -> None:
    for name, cases in lines.items():
        loads = [case[0]["load"] or case[0]["requests_per_second"] for case in cases]
        points = [spread([record[key] for record in case]) for case in cases]
        axes.errorbar(
            loads, [mean for mean, _ in points], [half for _, half in points], label=name, marker="o", capsize=2
        )
    fraction = all(case[0]["load"] is not None for cases in lines.values() for case in cases)
    axes.set_xlabel("load (fraction of saturation)" if fraction else "requests per second")
    axes.set_ylabel(label)
    axes.set_yscale("log")
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.legend(fontsize=7, frameon=False)
