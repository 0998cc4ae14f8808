"""A plan as a table on the terminal and as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table

from tokcore.paro import CLASSES, ParoPlan
from tokcore.permutation import NAMES

COLUMNS = ("steps from", "layer", "head", "order", "class", "density", "recall", "PSNR dB")


def rows(plan: ParoPlan) -> Iterator[tuple[int, str, int, str, str, float, float, float]]:
    """A row for each group of steps, layer and head: first step, layer, head, order, class, density, recall, PSNR."""
    for group, step in enumerate(plan.steps):
        for number, layer in enumerate(plan.layers):
            for head in range(plan.num_heads):
                place = (group, number, head)
                yield (
                    step,
                    layer,
                    head,
                    NAMES[int(plan.permutations[place])],
                    CLASSES[int(plan.head_class[place])],
                    float(plan.density[place]),
                    float(plan.recall[place]),
                    float(plan.psnr[place]),
                )


def table(plan: ParoPlan) -> Table:
    """The rows, and below them their means."""
    grid, text = "x".join(map(str, plan.grid)), f" and {sum(plan.text)} of text" if sum(plan.text) else ""
    title = f"{grid} tokens{text}, blocks of {plan.block[0]}x{plan.block[1]}, {plan.masks.size(0)} distinct masks"
    result = Table(title=title, title_justify="left")
    for index, name in enumerate(COLUMNS):
        result.add_column(name, justify="left" if index in (1, 3, 4) else "right")
    for step, layer, head, order, kind, density, recall, psnr in rows(plan):
        figures = (f"{density:.1%}", f"{recall:.1%}", _decibels(psnr))
        result.add_row(str(step), escape(layer), str(head), order, kind, *figures)
    result.add_section()
    known = [value for value in plan.psnr.flatten().tolist() if math.isfinite(value)]
    mean = f"{sum(known) / len(known):.1f}" if known else "-"
    recall = float(plan.recall.double().mean())
    result.add_row("", "mean", "", "", "", f"{plan.predicted_density:.1%}", f"{recall:.1%}", mean)
    return result


def _decibels(psnr: float) -> str:
    return "-" if psnr != psnr else "exact" if psnr == math.inf else f"{psnr:.1f}"


def write_csv(plan: ParoPlan, path: Path) -> Path:
    """The rows with the scores of the six orders, a line for each."""
    scores = [f"{name} {order}" for name in ("sparse", "quantization") for order in NAMES]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "layer", "head", "order", "class", "density", "recall", "psnr_db", *scores])
        of_orders = torch.cat((plan.sparse_score, plan.quantization_score), -1).flatten(0, 2).tolist()
        writer.writerows([*row, *values] for row, values in zip(rows(plan), of_orders, strict=True))
    return path
