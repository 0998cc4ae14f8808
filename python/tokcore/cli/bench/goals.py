"""Judging the goals of a case table by the paired rounds of a run."""

from __future__ import annotations

from collections.abc import Iterable

from tokcore.cli.bench.results import (
    AnyGoalResult,
    CaseResult,
    GoalResult,
    MemoryGoalResult,
    RateGoalResult,
    ShareGoalResult,
    SizeGoalResult,
    TimeGoalResult,
)
from tokcore.testing.table import AnyGoal, Goal, MemoryGoal, RateGoal, ShareGoal, SizeGoal, TimeGoal
from tokcore.testing.timing import paired_ratio


def judge(goals: Iterable[AnyGoal], result: CaseResult, device: str | None = None) -> list[AnyGoalResult]:
    """The goals of this case, measure and backend: ratios from the two sides' common rounds, memory from fresh
    processes, times and rates where ``device`` is the one they are about, shares of the run's own peaks, sizes as
    allocated."""

    def judged(goal: AnyGoal) -> AnyGoalResult:
        if isinstance(goal, MemoryGoal):
            return _judge_memory(goal, result)
        if isinstance(goal, ShareGoal):
            return _judge_share(goal, result, device)
        if isinstance(goal, SizeGoal):
            return _judge_size(goal, result)
        if isinstance(goal, RateGoal):
            return _judge_rate(goal, result, device)
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


def _judge_rate(goal: RateGoal, result: CaseResult, device: str | None) -> RateGoalResult:
    found = [row.flops for row in result.rows if row.variant == goal.variant]
    reasons = {item.variant: item.reason for item in result.missing}
    measured = found[0] if found else None
    reason = None if measured is not None else reasons.get(goal.variant, "not selected")
    if device != goal.device:
        measured, reason = None, f"the GPU here is called {device}"
    return RateGoalResult(goal.variant, goal.device, goal.flops_per_second, goal.stretch, measured, reason)


def _judge_memory(goal: MemoryGoal, result: CaseResult) -> MemoryGoalResult:
    found = [row.memory for row in result.rows if row.variant == goal.variant and row.memory is not None]
    measured = getattr(found[0], goal.quantity) if found else None
    return MemoryGoalResult(goal.variant, goal.quantity, goal.limit, measured)


def _judge_share(goal: ShareGoal, result: CaseResult, device: str | None) -> ShareGoalResult:
    found = [row.peak_share for row in result.rows if row.variant == goal.variant]
    reasons = {item.variant: item.reason for item in result.missing}
    measured = found[0] if found else None
    reason = "no peak was measured" if found else reasons.get(goal.variant, "not selected")
    if goal.device not in (None, device):
        measured, reason = None, f"the GPU here is called {device}"
    return ShareGoalResult(goal.variant, goal.share, goal.stretch, measured, None if measured is not None else reason)


def _judge_size(goal: SizeGoal, result: CaseResult) -> SizeGoalResult:
    kept = {row.variant: row.keeps for row in result.rows}
    ours, theirs = kept.get(goal.variant), kept.get(goal.peer)
    measured = None if ours is None or not theirs else ours / theirs
    reason = None if measured is not None else f"needs {goal.variant} and {goal.peer}"
    return SizeGoalResult(goal.variant, goal.peer, goal.limit, measured, reason)


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
    if isinstance(goal, RateGoalResult):
        return f"{goal.variant} {(goal.measured or 0.0) / 1e12:.3g} TFLOP/s, goal {goal.flops_per_second / 1e12:.3g}"
    if isinstance(goal, MemoryGoalResult):
        return f"{goal.variant} {goal.quantity} {goal.measured:.3g}, goal {goal.limit:.3g}"
    if isinstance(goal, ShareGoalResult):
        return f"{goal.variant} {goal.measured:.0%} of its limit, goal {goal.share:.0%}"
    if isinstance(goal, SizeGoalResult):
        return f"{goal.variant} keeps {goal.measured:.3g}x {goal.peer}, goal {goal.limit:.3g}x"
    return f"{goal.variant} {goal.measured:.3g}x {goal.peer}, goal {goal.ratio:.3g}x"
