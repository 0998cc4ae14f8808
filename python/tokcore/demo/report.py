"""The summary at the end of the demo."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokcore.demo.agreement import BF16_UNIT_ROUNDOFF, Agreement
from tokcore.demo.costs import LossCost
from tokcore.demo.probe import GradientError
from tokcore.demo.progress import Progress
from tokcore.demo.score import ScoredText
from tokcore.demo.train import Training
from tokcore.testing.memory import PeakMemory

WHY_EXACT = (
    "All three trained with the exact gradient (filter_eps=None). The default filter drops probabilities below 2^-12: "
    "a nearly uniform softmax over 32768 tokens is 2^-15 everywhere, so that early in training the filter drops all "
    "but the target's own term, and later the long tail of a small model. It is made for the peaked distributions of "
    "trained models. Here it would have changed the gradient of e by up to {filter:.0%}, where bf16 rounding changes "
    "it by {rounding:.1%}; its rate and effect were measured on the same batches instead."
)


@dataclass(frozen=True)
class Report:
    """Everything that the summary tells."""

    training: Training
    agreement: Agreement
    costs: Sequence[LossCost]
    gradient_errors: Sequence[GradientError]
    scored: ScoredText


def print_report(report: Report, console: Console) -> None:
    """Print the tables and the verdict."""
    console.print(_cost_table(report))
    console.print(_gradient_table(report.gradient_errors))
    console.print(_filter_table(report))
    worst = max(probe.error_e for probe in report.training.probes)
    rounding = next(error.grad_e for error in report.gradient_errors if error.name == "tokcore")
    console.print(WHY_EXACT.format(filter=worst, rounding=rounding), style="dim", highlight=False)
    console.print(_held_out_table(report.scored))
    console.print(*verdict(report.agreement), sep="\n", highlight=False)


def print_paths(pictures: Sequence[Path], data: Sequence[Path], checkpoint: Path, progress: Progress) -> None:
    """Print where everything was written, and how long it took."""
    progress.console.print(_path_table(pictures, data, checkpoint))
    progress.console.print(f"demo took {progress.seconds:.0f} s", highlight=False)


def verdict(agreement: Agreement) -> list[str]:
    """Both parts of the criterion with their numbers, and PASS or FAIL."""
    state = "[bold green]PASS[/]" if agreement.passed else "[bold red]FAIL[/]"
    return [
        f"{state} loss curves of tokcore and eager agree within bf16 rounding:",
        f"  mean |difference| / loss  {agreement.relative:.2e}       "
        f"(allowed {BF16_UNIT_ROUNDOFF:.2e}, bf16's unit roundoff)",
        f"  mean |difference|         {agreement.difference:.5f} nats  (allowed {agreement.allowed:.5f}: twice the "
        f"{agreement.control:.5f} between two roundings of eager, plus {agreement.floor:.5f})",
    ]


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def _cost_table(report: Report) -> Table:
    columns = ("loss function", "first loss", "last loss", "loss fwd+bwd", "whole step", "extra memory", "gradients")
    table = _table("Training, medians per step", columns)
    for cost in report.costs:
        losses = report.training.trainees[cost.name].losses
        table.add_row(
            cost.name,
            f"{losses[0]:.4f}",
            f"{_tail(losses):.4f}",
            f"{1e3 * cost.loss_seconds:.0f} ms",
            f"{1e3 * cost.step_seconds:.0f} ms",
            *_megabytes(cost.memory),
        )
    by_name = {cost.name: cost for cost in report.costs}
    ours, eager = by_name["tokcore"], by_name["eager"]
    table.add_section()
    table.add_row(
        "eager / tokcore",
        "",
        "",
        _ratio(eager.loss_seconds, ours.loss_seconds),
        _ratio(eager.step_seconds, ours.step_seconds),
        _ratio(eager.memory.extra, ours.memory.extra) if eager.memory and ours.memory else "",
        "",
    )
    table.caption = "last loss: mean of the last ten steps; extra memory: peak beyond inputs and gradients"
    return table


def _megabytes(memory: PeakMemory | None) -> tuple[str, str]:
    if memory is None:
        return "not measured", ""
    return f"{memory.extra / 1e6:.1f} MB", f"{memory.results / 1e6:.1f} MB"


def _ratio(numerator: float, denominator: float) -> str:
    return f"{numerator / denominator:.2f}x" if denominator else "-"


def _tail(losses: Sequence[float]) -> float:
    return sum(losses[-10:]) / len(losses[-10:])


def _gradient_table(errors: Sequence[GradientError]) -> Table:
    columns = ("loss function", "|loss error|", "grad e", "grad c")
    table = _table("Distance from fp32 on the last step's hidden states (relative norms of the gradients)", columns)
    for error in errors:
        table.add_row(error.name, f"{error.loss:.2e}", f"{error.grad_e:.3%}", f"{error.grad_c:.3%}")
    return table


def _filter_table(report: Report) -> Table:
    columns = ("step", "tiles skipped", "grad e error", "grad c error", "filtered loss", "exact loss")
    table = _table("Gradient filter (2^-12) on the same batches", columns)
    probes = report.training.probes
    shown = sorted({0, len(probes) // 4, len(probes) // 2, 3 * len(probes) // 4, len(probes) - 1})
    for probe in (probes[index] for index in shown):
        exact = report.training.trainees["tokcore"].steps[probe.step].loss_seconds
        table.add_row(
            str(probe.step + 1),
            f"{probe.filter_rate:.1%}",
            f"{probe.error_e:.1%}",
            f"{probe.error_c:.1%}",
            f"{1e3 * probe.seconds:.0f} ms",
            f"{1e3 * exact:.0f} ms",
        )
    return table


def _held_out_table(scored: ScoredText) -> Table:
    table = _table(f"Held-out {scored.name}", ("quantity", "value"))
    table.add_row("tokens", str(len(scored.texts)))
    table.add_row("loss", f"{scored.loss:.4f} nats per token")
    table.add_row("bits per byte", f"{scored.bits_per_byte:.4f}")
    table.add_row("mean entropy", f"{scored.mean_entropy:.4f} nats")
    (highest,) = scored.highest_entropy(1) or [0]
    table.add_row(
        "highest entropy", f"{scored.entropy[highest].item():.3f} nats before {escape(repr(scored.texts[highest]))}"
    )
    return table


def _path_table(pictures: Sequence[Path], data: Sequence[Path], checkpoint: Path) -> Table:
    table = Table(title="Written", title_justify="left", title_style="bold", show_header=False)
    table.add_column("what")
    table.add_column("path", overflow="fold")
    for kind, paths in (("picture", pictures), ("data", data), ("checkpoint", [checkpoint])):
        for path in paths:
            table.add_row(kind, escape(str(path)))
    return table
