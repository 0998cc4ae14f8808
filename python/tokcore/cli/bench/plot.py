"""Bars of a benchmark document (the content of ``--json``), in a light and a dark variant, with the data as CSV."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tokcore.cli.bench.tables import rate_text
from tokcore.cli.console import messages

_FIELDS = ("case", "measure", "variant", "peer", "median_ms", "lower_quartile_ms", "upper_quartile_ms", "tflops",
           "gbytes_per_s", "peak_share", "speedup", "baseline", "extra_mib", "max_error")  # fmt: skip
_LONGEST_OVER_MEDIAN = 3.0  # a longer bar is cut, or one slow peer would flatten all the others


@dataclass(frozen=True)
class Theme:
    """Colours of one variant of a picture."""

    background: str
    text: str
    faint: str
    own: str
    peer: str


THEMES = {
    "light": Theme("#ffffff", "#1f2328", "#8c959f", "#0969da", "#afb8c1"),
    "dark": Theme("#0d1117", "#e6edf3", "#6e7681", "#58a6ff", "#484f58"),
}


def draw(document: Mapping[str, Any], path: Path) -> list[Path]:
    """Writes ``path`` with "-light" and "-dark" before its suffix, and the data beside it; returns the three paths."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        path = path.with_name(path.name + ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_suffix(".csv")]
    _write_csv(document, written[0])
    panels = [result for result in document["results"] if result["rows"]]
    for name, theme in THEMES.items():
        if panels:
            written.append(path.with_name(f"{path.stem}-{name}{path.suffix}"))
            _draw_panels(document, panels, theme, written[-1])
    for file in written:
        messages().print(f"wrote {file}", soft_wrap=True, markup=False)
    return written


def _write_csv(document: Mapping[str, Any], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, _FIELDS)
        writer.writeheader()
        for result in document["results"]:
            for row in result["rows"]:
                writer.writerow(_csv_row(result, row))


def _csv_row(result: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    memory, error = row["memory"], row["max_error"]
    return {
        "case": result["case"],
        "measure": result["measure"],
        "variant": row["variant"],
        "peer": row["peer"],
        "median_ms": row["median_seconds"] * 1e3,
        "lower_quartile_ms": row["lower_quartile_seconds"] * 1e3,
        "upper_quartile_ms": row["upper_quartile_seconds"] * 1e3,
        "tflops": _scaled(row["flops_per_second"], 1e12),
        "gbytes_per_s": _scaled(row["bytes_per_second"], 1e9),
        "peak_share": row["peak_share"],
        "speedup": row["speedup"],
        "baseline": result["baseline"],
        "extra_mib": None if memory is None else memory["extra_bytes"] / 2**20,
        "max_error": None if error is None else error["value"],
    }


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _draw_panels(document: Mapping[str, Any], panels: Sequence[Mapping[str, Any]], theme: Theme, path: Path) -> None:
    bars = [len(panel["rows"]) for panel in panels]
    heights = [0.34 * count + 0.75 for count in bars]  # inches; the constant is a panel's title and axis
    layout = ConstrainedLayoutEngine(w_pad=0.2, h_pad=0.12, hspace=0.06)
    figure = Figure(figsize=(12, sum(heights) + 1.1), facecolor=theme.background, layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        _draw_bars(axis, panel, theme)
    title = f"{document['op']}: milliseconds per call, shorter is better"
    figure.suptitle(title, fontsize=14, fontweight="bold", color=theme.text)
    environment = document["environment"]
    figure.supxlabel(
        f"median, line: interquartile range · {_machine(document)} · torch {environment['torch']} · "
        f"{environment['date'][:10]}",
        fontsize=9,
        color=theme.faint,
    )
    figure.savefig(path, dpi=150, facecolor=theme.background)


def _machine(document: Mapping[str, Any]) -> str:
    environment = document["environment"]
    names = {
        "cpu": f"{environment['cpu']}, level {environment['isa']}, {environment['threads']} threads",
        "cuda": " + ".join(environment["gpus"]),
    }
    return ", ".join(names[backend] for backend in dict.fromkeys(result["backend"] for result in document["results"]))


def _draw_bars(axis: Axes, panel: Mapping[str, Any], theme: Theme) -> None:
    rows = list(reversed(panel["rows"]))  # the first row on top
    medians = [row["median_seconds"] * 1e3 for row in rows]
    limit = bar_limit(medians)
    colors = [theme.peer if row["peer"] else theme.own for row in rows]
    axis.barh(range(len(rows)), [min(median, 1.06 * limit) for median in medians], color=colors, height=0.68)
    for place, (row, median) in enumerate(zip(rows, medians, strict=True)):
        if median > limit:
            end = 1.06 * limit
            for offset in (0.0, 0.012):  # two gaps: the bar goes on beyond the axis
                gap = [(0.972 + offset) * limit, (0.982 + offset) * limit]
                axis.plot(gap, [place - 0.36, place + 0.36], color=theme.background, linewidth=2.5)
        else:
            quartiles = [row["lower_quartile_seconds"] * 1e3, min(row["upper_quartile_seconds"] * 1e3, 1.06 * limit)]
            axis.plot(quartiles, [place, place], color=theme.text, linewidth=1.2, solid_capstyle="butt")
            end = max(median, quartiles[1])
        weight = "normal" if row["peer"] else "bold"
        label = _label(row)
        axis.text(end + 0.01 * limit, place, label, va="center", fontsize=9, fontweight=weight, color=theme.text)
    axis.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    axis.set_xlim(0, 1.62 * limit)  # room for the labels
    axis.set_xticks([tick for tick in axis.get_xticks() if tick <= limit])
    axis.grid(axis="x", color=theme.faint, alpha=0.25, linewidth=0.8)
    axis.set_axisbelow(True)
    baseline = f"      × = times as fast as {panel['baseline']}" if panel["baseline"] else ""
    title = f"{panel['measure']} · {panel['case']}{baseline}"
    axis.set_title(title, loc="left", fontsize=10, color=theme.text)
    axis.tick_params(colors=theme.text, length=0, labelsize=10)
    axis.tick_params(axis="x", colors=theme.faint, labelsize=8)
    axis.set_facecolor(theme.background)
    for side in axis.spines.values():
        side.set_visible(False)


def bar_limit(medians: Sequence[float]) -> float:
    """The length at which bars are cut: that of the longest one within a few times the median."""
    threshold = _LONGEST_OVER_MEDIAN * statistics.median(medians)
    return max(median for median in medians if median <= threshold)


def _label(row: Mapping[str, Any]) -> str:
    median = row["median_seconds"] * 1e3
    parts = [f"{median:.3g} ms" if median < 100 else f"{median:.0f} ms"]
    if row["speedup"] is not None:
        parts.append(f"{row['speedup']:.2f}×")
    if row["flops_per_second"] is not None or row["bytes_per_second"] is not None:
        limit = row["peak"]["kind"] if row["peak"] is not None else None
        parts.append(rate_text(row["flops_per_second"], row["bytes_per_second"], limit))
    if row["peak_share"] is not None:
        parts.append(f"{row['peak_share']:.0%} of peak")
    return " · ".join(parts)
