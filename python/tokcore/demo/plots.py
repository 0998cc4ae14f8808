"""Pictures of the training: loss curves, cost of the loss, and the gradient filter; each light and dark."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokcore.demo.agreement import Agreement
from tokcore.demo.costs import LossCost
from tokcore.demo.theme import THEMES, Theme
from tokcore.demo.train import LossInputs, Training

Draw = Callable[[Any, Theme], None]


def write_plots(
    folder: Path, stem: str, size: tuple[float, float], rows: int, columns: int, draw: Draw, **grid: Any
) -> list[Path]:
    """Draw on a grid of axes with each theme's colours and write ``<stem>_light.png`` and ``<stem>_dark.png``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths = []
    for theme in THEMES:
        figure = Figure(figsize=size, dpi=150, facecolor=theme.page, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=grid)
        for axis in axes.flat:
            _style(axis, theme)
        draw(axes, theme)
        paths.append(folder / f"{stem}_{theme.name}.png")
        figure.savefig(paths[-1], facecolor=theme.page)
    return paths


def plot_losses(training: Training, agreement: Agreement, folder: Path) -> list[Path]:
    """Loss curves, and below them how far tokcore and the upcast control are from eager."""
    curves = {name: trainee.losses for name, trainee in training.trainees.items()}
    steps = range(1, len(curves["eager"]) + 1)

    def draw(axes: Any, theme: Theme) -> None:
        top, bottom = axes[0, 0], axes[1, 0]
        for name, width, style in (("eager upcast", 3.2, "-"), ("eager", 2.0, "-"), ("tokcore", 1.3, (0, (4, 2)))):
            top.plot(steps, curves[name], color=theme.series[name], linewidth=width, linestyle=style, label=name)
        top.set_ylabel("training loss (nats per token)")
        top.set_title("Same seed, same batches, three losses", color=theme.ink, loc="left", weight="bold")
        _legend(top, theme)
        for name in ("eager upcast", "tokcore"):
            distance = [abs(a - b) for a, b in zip(curves[name], curves["eager"], strict=True)]
            bottom.plot(steps, distance, color=theme.series[name], linewidth=1.2, label=f"{name} − eager")
        bottom.set_yscale("log")
        bottom.set_ylabel("|difference| (nats)")
        bottom.set_xlabel("training step")
        verdict = "agree" if agreement.passed else "DISAGREE"
        title = (
            f"Curves {verdict} within bf16 rounding: mean distance {agreement.difference:.4f}, "
            f"two eager roundings {agreement.control:.4f}"
        )
        bottom.set_title(title, color=theme.ink, loc="left", fontsize=10)
        _legend(bottom, theme)

    return write_plots(folder, "loss_curves", (9.0, 6.6), 2, 1, draw, height_ratios=(2.2, 1.0))


def plot_costs(costs: Sequence[LossCost], inputs: LossInputs, folder: Path) -> list[Path]:
    """Bars per loss: time of the loss, of the whole step, and memory beyond inputs and gradients."""
    (num_tokens, hidden_size), vocabulary = inputs.e.shape, inputs.c.size(0)
    headline = f"Cost of the loss: {num_tokens} tokens, hidden size {hidden_size}, vocabulary {vocabulary}, bf16"
    panels = (
        ("loss, forward + backward (ms)", [1e3 * cost.loss_seconds for cost in costs], "{:.0f}"),
        ("whole training step (ms)", [1e3 * cost.step_seconds for cost in costs], "{:.0f}"),
        (
            "memory beyond gradients (MB)",
            [cost.memory.extra / 1e6 if cost.memory else math.nan for cost in costs],
            "{:.1f}",
        ),
    )

    def draw(axes: Any, theme: Theme) -> None:
        axes[0, 0].figure.suptitle(headline, color=theme.ink, weight="bold", x=0.01, ha="left", fontsize=12)
        for axis, (title, values, form) in zip(axes.flat, panels, strict=True):
            colors = [theme.series[cost.name] for cost in costs]
            bars = axis.bar(range(len(costs)), values, color=colors, width=0.62)
            axis.bar_label(bars, labels=[form.format(value) for value in values], color=theme.ink, padding=2)
            axis.set_xticks(range(len(costs)), [cost.name.replace(" ", "\n") for cost in costs])
            axis.set_title(title, color=theme.ink, fontsize=10.5, loc="left")
            axis.margins(y=0.14)
            axis.grid(visible=False, axis="x")

    return write_plots(folder, "loss_cost", (9.0, 3.9), 1, 3, draw)


def plot_filter(training: Training, folder: Path) -> list[Path]:
    """Over training: the filter's rate, what it does to the gradients, and the time of the loss with and without it."""
    probes = training.probes
    steps = [probe.step + 1 for probe in probes]
    exact = [training.trainees["tokcore"].steps[probe.step].loss_seconds for probe in probes]

    def draw(axes: Any, theme: Theme) -> None:
        rate, error, seconds = axes[:, 0]
        rate.plot(steps, [100.0 * probe.filter_rate for probe in probes], color=theme.accent, marker="o", markersize=3)
        rate.set_ylabel("tiles skipped (%)")
        rate.set_ylim(-4, 104)
        rate.set_title("Default gradient filter, 2⁻¹², along the training", color=theme.ink, loc="left", weight="bold")
        error.plot(steps, [100.0 * probe.error_e for probe in probes], color=theme.series["tokcore"], label="∂L/∂e")
        error.plot(steps, [100.0 * probe.error_c for probe in probes], color=theme.series["eager"], label="∂L/∂c")
        error.set_ylabel("gradient error (%)")
        error.set_ylim(bottom=0)
        _legend(error, theme)
        seconds.plot(steps, [1e3 * value for value in exact], color=theme.series["eager upcast"], label="exact")
        seconds.plot(steps, [1e3 * probe.seconds for probe in probes], color=theme.accent, label="filtered")
        seconds.set_ylabel("loss (ms)")
        seconds.set_ylim(0, 1.6e3 * statistics.median([*exact, *(probe.seconds for probe in probes)]))
        seconds.set_xlabel("training step")
        _legend(seconds, theme)

    return write_plots(folder, "filter_rate", (9.0, 6.6), 3, 1, draw)


def _style(axis: Any, theme: Theme) -> None:
    axis.set_facecolor(theme.page)
    axis.tick_params(colors=theme.muted, which="both")
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set_color(theme.muted)
    for side, spine in axis.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(theme.grid)
    axis.grid(visible=True, color=theme.grid, linewidth=0.8)
    axis.set_axisbelow(True)


def _legend(axis: Any, theme: Theme) -> None:
    axis.legend(frameon=False, labelcolor=theme.ink, fontsize=9)
