"""``tokcore bench --list``: what there is to time."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokcore.testing.table import AnyGoal, MemoryGoal, OpTable, RateGoal, ShareGoal, SizeGoal, TimeGoal


def print_listing(out: Console, table: OpTable) -> None:
    """Cases meant for timing with their tags, variants with their measure, and goals."""
    cases = Table("case", "tags", title=f"cases of {table.op}", title_justify="left")
    others = [case for case in table.cases if case.timed]
    for case in others:
        cases.add_row(escape(case.name), ", ".join(sorted(case.tags)))
    out.print(cases)
    if len(others) < len(table.cases):
        count = len(table.cases) - len(others)
        out.print(f"and the {count} cases of `tokcore verify --op {table.op} --list`", soft_wrap=True)
    variants = Table("variant", "measure", "whose", title="variants", title_justify="left")
    for variant in table.variants:
        variants.add_row(escape(variant.name), variant.measure, "peer" if variant.peer else "tokcore")
    out.print(variants)
    if not table.goals:
        return
    goals = Table("case", "measure", "variant", "goal", title="goals", title_justify="left")
    for goal in table.goals:
        goals.add_row(escape(goal.case), goal.measure, escape(goal.variant), escape(_wanted(goal)))
    out.print(goals)


def _wanted(goal: AnyGoal) -> str:
    if isinstance(goal, TimeGoal):
        return f"≤ {goal.seconds * 1e3:g} ms on {goal.device}"
    if isinstance(goal, RateGoal):
        hoped = "" if goal.stretch is None else f", stretch {goal.stretch / 1e12:g}"
        return f"≥ {goal.flops_per_second / 1e12:g}{hoped} TFLOP/s on {goal.device}"
    if isinstance(goal, MemoryGoal):
        return f"{goal.quantity} ≤ {goal.limit:g}"
    if isinstance(goal, ShareGoal):
        hoped = "" if goal.stretch is None else f", stretch {goal.stretch:.0%}"
        where = "" if goal.device is None else f" on {goal.device}"
        return f"≥ {goal.share:.0%} of the limit measured in the run{hoped}{where}"
    if isinstance(goal, SizeGoal):
        return f"keeps ≤ {goal.limit:g}× {goal.peer}"
    stretch = "" if goal.stretch is None else f", stretch {goal.stretch:g}×"
    return f"≥ {goal.ratio:.3g}× {goal.peer}{stretch}"
