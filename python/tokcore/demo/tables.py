"""The data behind every picture, as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokcore.demo.costs import LossCost
from tokcore.demo.score import ScoredText
from tokcore.demo.train import Training
from tokcore.testing.memory import PeakMemory

PROBE_COLUMNS = ("step", "filter_rate", "error_grad_e", "error_grad_c", "seconds")
COST_COLUMNS = ("loss", "loss_seconds", "step_seconds", "extra_bytes", "gradient_bytes")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write one table and return its path."""
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def _bytes(memory: PeakMemory | None) -> tuple[object, object]:
    return ("", "") if memory is None else (memory.extra, memory.results)


def write_tables(folder: Path, training: Training, costs: Sequence[LossCost], scored: ScoredText) -> list[Path]:
    """Write loss_curves.csv, filter_rate.csv, loss_cost.csv and entropy.csv into ``folder``."""
    names = list(training.trainees)
    columns = [f"{column} {name}" for name in names for column in ("loss", "loss_seconds", "step_seconds")]
    steps = zip(*(training.trainees[name].steps for name in names), strict=True)
    curves = (
        [index + 1, *(value for step in row for value in (step.loss, step.loss_seconds, step.step_seconds))]
        for index, row in enumerate(steps)
    )
    probes = ([p.step + 1, p.filter_rate, p.error_e, p.error_c, p.seconds] for p in training.probes)
    cost_rows = ([cost.name, cost.loss_seconds, cost.step_seconds, *_bytes(cost.memory)] for cost in costs)
    tokens = (
        [position, text, scored.logprob[position].item(), scored.entropy[position].item()]
        for position, text in enumerate(scored.texts)
    )
    return [
        write_csv(folder / "loss_curves.csv", ["step", *columns], curves),
        write_csv(folder / "filter_rate.csv", PROBE_COLUMNS, probes),
        write_csv(folder / "loss_cost.csv", COST_COLUMNS, cost_rows),
        write_csv(folder / "entropy.csv", ["position", "token", "logprob", "entropy"], tokens),
    ]
