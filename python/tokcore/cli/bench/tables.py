"""The printed form of a benchmark: one table per case and measure, with a goal's verdict beside its row."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokcore.cli.bench.results import (
    AnyGoalResult,
    CaseResult,
    MemoryGoalResult,
    RateGoalResult,
    Row,
    ShareGoalResult,
    SizeGoalResult,
    TimeGoalResult,
)
from tokcore.testing.peaks import KINDS, Peaks

_OF_LOGITS, _OF_BOUND = "of logits", "× lower bound"
_QUANTITIES: dict[str, Callable[[float], str]] = {
    "share_of_logits": lambda value: f"{value:.3g} × {_OF_LOGITS.removeprefix('of ')}",
    "times_lower_bound": lambda value: f"{value:.3g} {_OF_BOUND}",
}
_STYLES = {"pass": "green", "pass (stretch)": "bold green", "fall short": "bold red", "not measured": "yellow"}


def milliseconds(seconds: float) -> str:
    """Milliseconds with three significant digits or more."""
    value = seconds * 1e3
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def rate(row: Row) -> str:
    """TFLOP/s, or GB/s where memory is the nearer limit."""
    return rate_text(row.flops, row.bytes, row.peak[0] if row.peak is not None else None)


def rate_text(flops: float | None, moved: float | None, limit: str | None) -> str:
    """The rate that ``limit`` (a kind of peak) is about, of FLOPs and bytes per second."""
    if flops is not None and KINDS.get(limit or "") != "B/s":
        return f"{flops / 1e12:.2f} TFLOP/s" if flops >= 1e11 else f"{flops / 1e9:.3g} GFLOP/s"
    return f"{moved / 1e9:.3g} GB/s" if moved is not None else "—"


def megabytes(size: float) -> str:
    """MiB with one decimal."""
    return f"{size / 2**20:.1f} MiB"


def goal_text(goal: AnyGoalResult) -> str:
    """The goal, what came, and the verdict, as rich markup."""
    if isinstance(goal, MemoryGoalResult):
        show = _QUANTITIES[goal.quantity]
        came = f"{show(goal.measured)} " if goal.measured is not None else ""
        why = "" if goal.measured is not None else " (needs --memory)"
        return escape(f"≤ {show(goal.limit)}: {came}") + f"[{_STYLES[goal.verdict]}]{goal.verdict}[/]{escape(why)}"
    if isinstance(goal, TimeGoalResult):
        return _time_goal_text(goal)
    if isinstance(goal, RateGoalResult):
        return _rate_goal_text(goal)
    if isinstance(goal, ShareGoalResult):
        return _share_goal_text(goal)
    if isinstance(goal, SizeGoalResult):
        came = f"{goal.measured:.3f}× " if goal.measured is not None else ""
        why = f" ({goal.reason})" if goal.reason is not None else ""
        bound = escape(f"keeps ≤ {goal.limit:g}× {goal.peer}: {came}")
        return f"{bound}[{_STYLES[goal.verdict]}]{goal.verdict}[/]{escape(why)}"
    stretch = f", stretch {goal.stretch:g}×" if goal.stretch is not None else ""
    came = f"{goal.measured:.2f}× " if goal.measured is not None else ""
    why = f" ({goal.reason})" if goal.reason is not None else ""
    style = _STYLES[goal.verdict]
    return escape(f"≥ {goal.ratio:.3g}× {goal.peer}{stretch}: {came}") + f"[{style}]{goal.verdict}[/]{escape(why)}"


def _time_goal_text(goal: TimeGoalResult) -> str:
    stretch = f", stretch {milliseconds(goal.stretch)}" if goal.stretch is not None else ""
    came = f"{milliseconds(goal.measured)} ms " if goal.measured is not None else ""
    why = f" ({goal.reason})" if goal.reason is not None else ""
    limit = f"≤ {milliseconds(goal.seconds)}{stretch} ms on {goal.device}: {came}"
    return escape(limit) + f"[{_STYLES[goal.verdict]}]{goal.verdict}[/]{escape(why)}"


def _rate_goal_text(goal: RateGoalResult) -> str:
    stretch = f", stretch {goal.stretch / 1e12:g}" if goal.stretch is not None else ""
    came = f"{goal.measured / 1e12:.3g} " if goal.measured is not None else ""
    why = f" ({goal.reason})" if goal.reason is not None else ""
    bound = f"≥ {goal.flops_per_second / 1e12:g}{stretch} TFLOP/s on {goal.device}: {came}"
    return escape(bound) + f"[{_STYLES[goal.verdict]}]{goal.verdict}[/]{escape(why)}"


def _share_goal_text(goal: ShareGoalResult) -> str:
    stretch = f", stretch {goal.stretch:.0%}" if goal.stretch is not None else ""
    came = f"{goal.measured:.0%} " if goal.measured is not None else ""
    why = f" ({goal.reason})" if goal.reason is not None else ""
    bound = escape(f"≥ {goal.share:.0%} of peak{stretch}: {came}")
    return f"{bound}[{_STYLES[goal.verdict]}]{goal.verdict}[/]{escape(why)}"


def case_table(op: str, result: CaseResult, with_memory: bool) -> Table:
    """The table of one case and measure."""
    place = "" if result.backend == "cpu" else f" · {result.backend}"
    table = Table(title=escape(f"{op} · {result.measure} · {result.case.name}{place}"), title_justify="left")
    table.add_column("variant", no_wrap=True)
    for heading in ("median ms", "IQR ms", "rate", "of peak"):
        table.add_column(heading, justify="right", no_wrap=True)
    if result.baseline is not None:
        table.add_column(escape(f"× {result.baseline}"), justify="right")
    table.add_column("max error", justify="right")
    for heading in _memory_headings(result) if with_memory else ():
        table.add_column(heading, justify="right")
    if result.goals:
        table.add_column("goal")
    for row in result.rows:
        table.add_row(*_cells(row, result, with_memory), style=None if row.peer else "bold")
    return table


def _memory_headings(result: CaseResult) -> list[str]:
    """The memory columns that have something to say for this case and measure."""
    found = [row.memory for row in result.rows if row.memory is not None]
    headings = ["extra memory"]
    headings += [_OF_LOGITS] if any(memory.share_of_logits is not None for memory in found) else []
    headings += [_OF_BOUND] if any(memory.times_lower_bound is not None for memory in found) else []
    return headings


def _cells(row: Row, result: CaseResult, with_memory: bool) -> list[str]:
    cells = [escape(row.variant), milliseconds(row.summary.median), milliseconds(row.summary.iqr), rate(row)]
    cells.append(f"{row.peak_share:.0%}" if row.peak_share is not None else "—")
    if result.baseline is not None:
        cells.append(f"{row.speedup:.2f}×" if row.speedup is not None else "—")
    cells.append(f"{row.error.value:.1e} {escape(row.error.output)}" if row.error is not None else "—")
    if with_memory:
        memory = row.memory
        cells.append(megabytes(memory.extra) if memory else escape(row.memory_missing or "—"))
        shares = {
            _OF_LOGITS: f"{memory.share_of_logits:.1%}" if memory and memory.share_of_logits is not None else "—",
            _OF_BOUND: f"{memory.times_lower_bound:.2f}×" if memory and memory.times_lower_bound is not None else "—",
        }
        cells += [shares[heading] for heading in _memory_headings(result)[1:]]
    if result.goals:
        cells.append("\n".join(goal_text(goal) for goal in result.goals if goal.variant == row.variant))
    return cells


def print_case(out: Console, op: str, result: CaseResult, with_memory: bool, reproduce: str) -> None:
    """The table, what is missing from it and why, and the command that makes it again."""
    if result.rows:
        out.print(case_table(op, result, with_memory))
    shown = {row.variant for row in result.rows}
    for missing in result.missing:
        style = "red" if missing.failed else "yellow"
        out.print(f"[{style}]missing[/] {escape(missing.variant)}: {escape(missing.reason)}", soft_wrap=True)
    for goal in result.goals:
        if goal.variant not in shown:
            out.print(f"goal of {escape(goal.variant)} {goal_text(goal)}", soft_wrap=True)
    out.print(f"[dim]reproduce: {escape(reproduce)}[/]\n", soft_wrap=True)


def peaks_text(peaks: Peaks) -> str:
    """The measured peaks in one line."""
    if not peaks.rates:
        return "peak not measured (the library loaded here has no measure_peak)"
    units = {kind: ("G" if unit == "B/s" else "T") + unit for kind, unit in KINDS.items()}
    scales = {kind: 1e9 if unit == "B/s" else 1e12 for kind, unit in KINDS.items()}
    rates = (f"{kind} {value / scales[kind]:.3g} {units[kind]}" for kind, value in peaks.rates.items())
    return "peaks measured in this run: " + ", ".join(rates)
