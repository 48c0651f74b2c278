"""The plot of `bench kernels`: how many times faster than sdpa_f32 each implementation is, against context. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packhorse.errors import ConfigError

BASELINE = "sdpa_f32"
SUFFIXES = (".png", ".svg")
ON_PAGES = ("ours", "reference", "fused_dequant")
COLORS = {
    "ours": "#c0392b", "fused_dequant": "#e08e0b", "matmul_bf16": "#1f5fa8", "folded_f32": "#6b8e23", "folded_bf16": "#2e7d5b",
    "sdpa_bf16": "#7a6f9b", "sdpa_f32": "#444444", "reference": "#999999",
}  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P")

Series = dict[tuple[str, str], list[tuple[int, float]]]  # (impl, format or "") -> (context, speed-up)


def check_plot(path: Path) -> None:
    """Raises ConfigError where matplotlib is missing or the name is neither PNG nor SVG, before anything is measured."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"plot={path}: the name must end in {' or '.join(SUFFIXES)}", param="plot")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("plot needs matplotlib: pip install 'packhorse[plot]'", param="plot") from error


def speedups(records: list[dict[str, Any]]) -> dict[tuple[str, int], Series]:
    """By (op, batch): each implementation's speed-up over BASELINE. One without pages is the same for all formats: drawn once."""
    base = {
        (r["op"], r["batch"], r["format"], r["context"]): r["median_seconds"] for r in records if r["impl"] == BASELINE
    }
    panels: dict[tuple[str, int], Series] = {}
    for r in records:
        seconds = base.get((r["op"], r["batch"], r["format"], r["context"]))
        if seconds is None:
            continue
        key = (r["impl"], r["format"] if r["impl"] in ON_PAGES else "")
        points = panels.setdefault((r["op"], r["batch"]), {}).setdefault(key, [])
        if r["context"] not in [context for context, _ in points]:
            points.append((r["context"], seconds / r["median_seconds"]))
    return panels


def write_plot(path: Path, result: dict[str, Any]) -> list[Path]:
    """Writes PNG and SVG beside each other; returns their paths. Raises ConfigError where there is nothing to draw."""
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = speedups(result["records"])
    if not panels:
        raise ConfigError(
            f"plot={path}: no case was measured with {BASELINE}, which the plot compares with", param="plot"
        )
    figure = Figure(figsize=(8.2 * len(panels), 4.4), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, ((op, batch), series) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        _draw(axes, f"{op}, batch {batch}", series)
    figure.suptitle(_title(result), fontsize=9)
    paths = [path.with_suffix(suffix) for suffix in SUFFIXES]
    for each in paths:
        try:
            figure.savefig(each)
        except OSError as error:
            raise ConfigError(f"plot={each}: {error.strerror}", param="plot") from error
    return paths


def _draw(axes: Any, title: str, series: Series) -> None:
    formats = sorted({name for _, name in series if name})
    for (impl, name), points in series.items():
        contexts, values = zip(*sorted(points), strict=True)
        axes.plot(
            contexts,
            values,
            label=f"{impl} {name}".strip(),
            color=COLORS.get(impl),
            marker=MARKERS[formats.index(name) % len(MARKERS)] if name else ".",
            linewidth=2.4 if impl == "ours" else 1.4,
            linestyle="--" if impl == BASELINE else "-",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({context for points in series.values() for context, _ in points})
    axes.set_xticks(ticks, [f"{tick // 1024}K" if tick >= 1024 and tick % 1024 == 0 else str(tick) for tick in ticks])
    axes.minorticks_off()
    speeds = [value for points in series.values() for _, value in points]
    shown = [step for step in _STEPS if min(speeds) / 2 <= step <= max(speeds) * 2]
    axes.set_yticks(shown, [f"{step:g}" for step in shown])
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel(f"times faster than {BASELINE}")
    axes.set_title(title, fontsize=10)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))


_STEPS = tuple(step * 10.0**power for power in range(-3, 5) for step in (1, 2, 5))


def _title(result: dict[str, Any]) -> str:
    machine, first = result["machine"], result["records"][0]
    return (
        f"{machine.get('gpu') or machine['cpu']}, {machine['threads']} threads; {first['heads']} query heads, "
        f"{first['kv_heads']} KV heads of {first['head_dim']}; caches {result['caches']}"
    )
