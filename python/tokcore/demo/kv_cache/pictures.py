"""Memory against quality, and latency against length; each light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokcore.demo.kv_cache.generation import Latency
from tokcore.demo.kv_cache.report import Findings
from tokcore.demo.kv_cache.retrieval import Retrieved
from tokcore.demo.plots import write_plots
from tokcore.demo.theme import Theme

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")


def _palette(theme: Theme) -> list[str]:
    return [theme.series["eager upcast"], theme.series["tokcore"], theme.accent, theme.series["eager"], theme.mark]


def plot_memory(findings: Findings, folder: Path) -> list[Path]:
    """Perplexity and retrieved needles against the bytes of a cached token."""

    def draw(axes: Any, theme: Theme) -> None:
        text, needles = axes[0]
        base = findings.quality[0]
        text.axhline(1.0, color=theme.mark, linewidth=1.0, linestyle="--")
        text.text(1.1, 1.0, "1 %", color=theme.mark, fontsize=8.5, va="bottom", ha="right")
        colors = _palette(theme)
        for index, found in enumerate(findings.quality):
            worse = 100.0 * (found.perplexity / base.perplexity - 1)
            memory = found.bytes_per_token / base.bytes_per_token
            text.plot(
                [memory], [worse], MARKERS[index], markersize=8.5, alpha=0.9, zorder=3, linestyle="",
                color=colors[index % len(colors)], label=f"{found.scheme}  {worse:+.2f} % at {memory:.2f}x",
            )  # fmt: skip
        text.legend(frameon=False, labelcolor=theme.ink, fontsize=8.5, loc="upper right", bbox_to_anchor=(1.0, 0.86))
        text.set_xlabel("memory of a cached token (bf16 = 1)")
        text.set_ylabel("perplexity against bf16 (%)")
        text.set_title("Held-out text: memory against quality", color=theme.ink, loc="left", weight="bold", fontsize=11)
        text.set_xlim(0, 1.12)
        text.margins(y=0.1)
        _bars(needles, findings.retrieved, theme)

    return write_plots(folder, "kv_memory", (12.0, 4.6), 1, 2, draw)


def _bars(axis: Any, retrieved: Sequence[Retrieved], theme: Theme) -> None:
    """Needles found by cache, the reference first; what loses its needles by design in another colour."""
    reference = retrieved[0].bytes_per_token
    assert reference is not None
    colors = [theme.series["eager"] if found.forgets else theme.accent for found in retrieved]
    colors[0] = theme.muted
    rows = range(len(retrieved))
    bars = axis.barh(rows, [100.0 * found.accuracy for found in retrieved], color=colors, height=0.62)
    for bar, found in zip(bars, retrieved, strict=True):
        share = None if found.bytes_per_token is None else found.bytes_per_token / reference
        memory = "" if share is None else f" at {share:.2f}x memory"
        is_long = bar.get_width() > 55.0
        axis.text(
            bar.get_width() + (-2.0 if is_long else 2.0),
            bar.get_y() + bar.get_height() / 2,
            f"{found.accuracy:.1%}{memory}",
            color=theme.page if is_long else theme.ink,
            fontsize=9,
            va="center",
            ha="right" if is_long else "left",
        )
    axis.set_yticks(rows, [found.scheme for found in retrieved])
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("needles found (%)")
    axis.set_title("Evict or retain: planted needles", color=theme.ink, loc="left", weight="bold", fontsize=11)
    axis.grid(visible=False, axis="y")


def plot_latency(latency: Sequence[Latency], folder: Path) -> list[Path]:
    """Milliseconds of a decoded token against the cached length, whole model."""

    def draw(axes: Any, theme: Theme) -> None:
        axis = axes[0, 0]
        schemes = dict.fromkeys(found.scheme for found in latency)
        for color, marker, name in zip(_palette(theme), MARKERS, schemes, strict=False):
            points = sorted((found.length, 1e3 * found.seconds) for found in latency if found.scheme == name)
            axis.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=5, linewidth=1.8, label=name)
        lengths = sorted({found.length for found in latency})
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [f"{length}" for length in lengths])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.set_xlabel("cached tokens")
        axis.set_ylabel("one decoded token, whole model (ms)")
        axis.set_title("Latency against length", color=theme.ink, loc="left", weight="bold")
        axis.legend(frameon=False, labelcolor=theme.ink, fontsize=9)

    return write_plots(folder, "kv_latency", (9.0, 4.6), 1, 1, draw)


def plot_outliers(outliers: Sequence[Retrieved], folder: Path) -> list[Path]:
    """Needles found when one channel of the keys is a hundred times as large."""

    def draw(axes: Any, theme: Theme) -> None:
        axis = axes[0, 0]
        _bars(axis, outliers, theme)
        title = "Keys with a 100x outlier channel: needles found"
        axis.set_title(title, color=theme.ink, loc="left", weight="bold", fontsize=11)

    return write_plots(folder, "kv_outliers", (9.0, 4.2), 1, 1, draw)
