"""Pictures of a plan: attention by block before and after reordering, and the mask; each light and dark.

They need the packages matplotlib and numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokcore.demo.theme import THEMES, Theme
from tokcore.paro import scores
from tokcore.paro.plan import CLASSES, ParoPlan
from tokcore.paro.samples import Sample
from tokcore.permutation import NAMES, permutation_indices

WIDTH = 7.5  # inches of a row
DECADES = 2.0  # the colours reach from 1/100 of the greatest weight to it


@dataclass(frozen=True)
class HeadPicture:
    """What a row of a picture shows of one head."""

    title: str
    before: Tensor  # float [Mb, Nb]: attention of a row's mean query by block, in reading order
    after: Tensor  # the same in the chosen order
    mask: Tensor  # bool [Mb, Nb], in the chosen order
    order: str


def head_picture(plan: ParoPlan, sample: Sample, head: int) -> HeadPicture:
    """The picture of one head of the sample's layer and step."""
    group, layer = plan.group(sample.step), plan.layer(sample.layer)
    code = int(plan.permutations[group, layer, head])
    q, k, _ = sample.head(head)
    before, after = (
        scores.block_mass(
            q, k, sample.scale, permutation_indices(chosen, plan.grid, plan.text, q.device), plan.block
        ).cpu()
        for chosen in (0, code)
    )
    mask = plan.mask(sample.step, sample.layer).to_dense()[0, head]
    return HeadPicture(
        f"{sample.layer}, head {head}: {describe(plan, group, layer, head)}", before, after, mask, NAMES[code]
    )


def describe(plan: ParoPlan, group: int, layer: int, head: int) -> str:
    """One line of figures: order, class, density, recall, PSNR."""
    code, kind = int(plan.permutations[group, layer, head]), CLASSES[int(plan.head_class[group, layer, head])]
    density, recall = float(plan.density[group, layer, head]), float(plan.recall[group, layer, head])
    psnr = float(plan.psnr[group, layer, head])
    quality = "" if psnr != psnr else f", PSNR {psnr:.1f} dB"
    return f"order {NAMES[code]}, {kind}, density {density:.1%}, recall {recall:.1%}{quality}"


def draw_heads(pictures: Sequence[HeadPicture], folder: Path, stem: str, title: str = "") -> list[Path]:
    """A row of three maps for each head; writes ``<stem>_light.png`` and ``<stem>_dark.png`` into the folder."""
    paths = []
    for theme in THEMES:
        paths.append(folder / f"{stem}_{theme.name}.png")
        _draw(pictures, theme, paths[-1], title)
    return paths


def _draw(pictures: Sequence[HeadPicture], theme: Theme, path: Path, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    color = theme.series["tokcore"]
    colors = LinearSegmentedColormap.from_list("attention", [theme.page, color, theme.ink])
    kept = LinearSegmentedColormap.from_list("mask", [theme.grid, theme.accent])
    rows = len(pictures)
    figure = Figure(figsize=(WIDTH, (WIDTH / 3 + 0.15) * rows + (0.4 if title else 0.0)), dpi=110, facecolor=theme.page)
    figure.set_layout_engine("constrained", h_pad=0.06, w_pad=0.06, hspace=0.02, wspace=0.02)
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, color=theme.ink, weight="bold", x=0.01, ha="left", fontsize=12)
    parts: Any = [figure] if rows == 1 else figure.subfigures(rows, 1)
    for part, picture in zip(parts, pictures, strict=True):
        part.set_facecolor(theme.page)
        if not (title and rows == 1):
            part.suptitle(picture.title, color=theme.ink, x=0.01, ha="left", fontsize=10)
        axes = part.subplots(1, 3)
        panels = (
            ("reading order FHW", _levels(picture.before), colors),
            (f"reordered {picture.order}", _levels(picture.after), colors),
            (f"blocks kept, {picture.mask.double().mean():.0%}", picture.mask.double(), kept),
        )
        for axis, (label, values, ramp) in zip(axes, panels, strict=True):
            axis.imshow(values.numpy(), cmap=ramp, vmin=0.0, vmax=1.0, interpolation="nearest")
            axis.set_title(label, color=theme.muted, fontsize=9)
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_color(theme.grid)
        axes[0].set_ylabel("blocks of queries", color=theme.muted, fontsize=8)
        axes[0].set_xlabel("blocks of keys", color=theme.muted, fontsize=8)
    figure.savefig(path, facecolor=theme.page)


def _levels(mass: Tensor) -> Tensor:
    """Logarithms of the masses, the greatest as 1 and what is :data:`DECADES` below it or less as 0."""
    relative = mass / mass.max().clamp(min=1e-300)
    return (1.0 + relative.clamp(min=10.0**-DECADES).log10() / DECADES).to(torch.float64)
