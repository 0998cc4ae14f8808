"""Judging the goals of a case table by the paired rounds of a run."""

from __future__ import annotations

from collections.abc import Iterable

from tokcore.cli.bench.results import AnyGoalResult, CaseResult, GoalResult, MemoryGoalResult, TimeGoalResult
from tokcore.testing.table import Goal, MemoryGoal, TimeGoal
from tokcore.testing.timing import paired_ratio


def judge(
    goals: Iterable[Goal | MemoryGoal | TimeGoal], result: CaseResult, device: str | None = None
) -> list[AnyGoalResult]:
    """The goals of this case, measure and backend: ratios from the two sides' common rounds, memory from fresh
    processes, times where ``device`` is the one they are about."""

    def judged(goal: Goal | MemoryGoal | TimeGoal) -> AnyGoalResult:
        if isinstance(goal, MemoryGoal):
            return _judge_memory(goal, result)
        return _judge_time(goal, result, device) if isinstance(goal, TimeGoal) else _judge(goal, result)

    here = (result.case.name, result.measure, result.backend)
    return [judged(goal) for goal in goals if (goal.case, goal.measure, goal.backend) == here]


def _judge_time(goal: TimeGoal, result: CaseResult, device: str | None) -> TimeGoalResult:
    found = [row.summary.median for row in result.rows if row.variant == goal.variant]
    reasons = {item.variant: item.reason for item in result.missing}
    reason = None if found else reasons.get(goal.variant, "not selected")
    if device != goal.device:
        found, reason = [], f"the GPU here is called {device}"
    return TimeGoalResult(goal.variant, goal.device, goal.seconds, goal.stretch, found[0] if found else None, reason)


def _judge_memory(goal: MemoryGoal, result: CaseResult) -> MemoryGoalResult:
    found = [row.memory for row in result.rows if row.variant == goal.variant and row.memory is not None]
    measured = getattr(found[0], goal.quantity) if found else None
    return MemoryGoalResult(goal.variant, goal.quantity, goal.limit, measured)


def _judge(goal: Goal, result: CaseResult) -> GoalResult:
    rows = {row.variant: row for row in result.rows}
    missing = {item.variant: item.reason for item in result.missing}
    absent = [name for name in (goal.variant, goal.peer) if name not in rows]
    if absent:
        reason = "; ".join(f"{name}: {missing.get(name, 'not selected')}" for name in absent)
        return GoalResult(goal.variant, goal.peer, goal.ratio, goal.stretch, None, reason)
    measured = paired_ratio(rows[goal.peer].samples, rows[goal.variant].samples)
    unpaired = "no common round" if measured is None else None
    return GoalResult(goal.variant, goal.peer, goal.ratio, goal.stretch, measured, unpaired)


def check(results: Iterable[CaseResult]) -> str | None:
    """None when every measured goal passes and there is one, else what is wrong, in one line."""
    judged = [(result, goal) for result in results for goal in result.goals if goal.measured is not None]
    short = [
        f"{result.case.name} {result.measure}: {_shortfall(goal)}"
        for result, goal in judged
        if goal.verdict == "fall short"
    ]
    if short:
        return "goals fall short: " + "; ".join(short)
    return None if judged else "no goal was measured"


def _shortfall(goal: AnyGoalResult) -> str:
    if isinstance(goal, TimeGoalResult):
        return f"{goal.variant} {(goal.measured or 0.0) * 1e3:.3g} ms, goal {goal.seconds * 1e3:.3g} ms"
    if isinstance(goal, MemoryGoalResult):
        return f"{goal.variant} {goal.quantity} {goal.measured:.3g}, goal {goal.limit:.3g}"
    return f"{goal.variant} {goal.measured:.3g}x {goal.peer}, goal {goal.ratio:.3g}x"
