"""Pictures of the act: frames of the video, and what the masks cost and keep; each light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tokcore.demo.plots import write_plots
from tokcore.demo.sparse_attention.measure import Variant
from tokcore.demo.sparse_attention.prefill import Prefill
from tokcore.demo.sparse_attention.video import psnr
from tokcore.demo.theme import Theme


def plot_frames(clean: Tensor, noisy: Tensor, variants: Sequence[Variant], folder: Path) -> list[Path]:
    """First, middle and last frame in rows; without noise, noisy, and attended by each variant in columns."""
    shown = (0, clean.size(0) // 2, clean.size(0) - 1)
    columns = [
        ("the video", clean, ""),
        ("with noise", noisy, f"{psnr(noisy, clean):.1f} dB"),
        *((variant.name, variant.frames, f"{variant.video_psnr:.1f} dB") for variant in variants),
    ]
    aspect = clean.size(2) / clean.size(3)
    width = 2.3

    def draw(axes: Any, theme: Theme) -> None:
        for row, frame in enumerate(shown):
            for column, (name, frames, figure) in enumerate(columns):
                axis = axes[row, column]
                axis.imshow(frames[frame].clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
                axis.grid(visible=False)
                axis.set(xticks=[], yticks=[])
                for spine in axis.spines.values():
                    spine.set_visible(False)
                if row == 0:
                    title = f"{name}\n{figure}".strip()
                    axis.set_title(title, color=theme.ink, fontsize=9.5)
            axes[row, 0].set_ylabel(f"frame {frame + 1}", color=theme.muted, fontsize=9)

    size = (width * len(columns), len(shown) * width * aspect + 0.5)
    return write_plots(folder, "sparse_attention_frames", size, len(shown), len(columns), draw)


def plot_costs(variants: Sequence[Variant], prefills: Sequence[Prefill], folder: Path) -> list[Path]:
    """Bars: time and output error of the video's attention; time and loss of the language model's prefill."""

    def bars(axis: Any, names: Sequence[str], values: Sequence[float], form: str, colors: Sequence[str]) -> None:
        places = range(len(names))
        drawn = axis.barh(places, values, color=colors, height=0.62)
        axis.bar_label(drawn, labels=[form.format(value) for value in values], padding=3, fontsize=9)
        axis.set_yticks(places, names, fontsize=9)
        axis.invert_yaxis()
        axis.margins(x=0.18)
        axis.grid(visible=False, axis="y")

    def draw(axes: Any, theme: Theme) -> None:
        def colors(names: Sequence[str], peers: int) -> list[str]:
            return [theme.series["eager upcast"] if i < peers else theme.series["tokcore"] for i in range(len(names))]

        names = [variant.name for variant in variants]
        bars(axes[0, 0], names, [1e3 * variant.seconds for variant in variants], "{:.0f}", colors(names, 1))
        axes[0, 0].set_title("attention of the video, ms a call", loc="left", color=theme.ink, fontsize=10.5)
        bars(axes[0, 1], names, [variant.output_psnr for variant in variants], "{:.1f}", colors(names, 1))
        axes[0, 1].set_title("output against dense fp32, PSNR in dB", loc="left", color=theme.ink, fontsize=10.5)
        read = [prefill.name for prefill in prefills]
        bars(axes[1, 0], read, [1e3 * prefill.seconds for prefill in prefills], "{:.0f}", colors(read, 1))
        axes[1, 0].set_title("language model, ms for the text", loc="left", color=theme.ink, fontsize=10.5)
        bars(axes[1, 1], read, [prefill.loss for prefill in prefills], "{:.3f}", colors(read, 1))
        axes[1, 1].set_title("loss, nats per token", loc="left", color=theme.ink, fontsize=10.5)
        for axis in axes.flat:
            for label in axis.texts:
                label.set_color(theme.ink)
            axis.tick_params(axis="y", colors=theme.ink)
        for axis in axes[:, 1]:
            axis.set_yticklabels([])

    return write_plots(folder, "sparse_attention_costs", (10.5, 5.2), 2, 2, draw)
