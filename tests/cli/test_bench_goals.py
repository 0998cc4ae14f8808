from __future__ import annotations

from dataclasses import replace

import pytest
import toy

from tokcore.cli.bench.goals import check, judge
from tokcore.cli.bench.listing import _wanted
from tokcore.cli.bench.results import CaseResult, Missing, Row
from tokcore.cli.bench.tables import goal_text
from tokcore.testing.memory import PeakMemory
from tokcore.testing.table import Goal, MemoryGoal, RateGoal, ShareGoal, SizeGoal, TimeGoal
from tokcore.testing.timing import summarize

CASE = toy.TABLE.cases[0]


def result(**seconds: dict[int, float]) -> CaseResult:
    rows = [Row(name, name != "own", summarize(samples), samples) for name, samples in seconds.items()]
    return CaseResult(CASE, "forward", rows=rows)


def goal(ratio: float, stretch: float | None = None, peer: str = "peer") -> Goal:
    return Goal(CASE.name, "forward", "own", peer, ratio, stretch)


@pytest.mark.parametrize(
    ("ratio", "stretch", "verdict"),
    [(2.0, None, "pass"), (2.0, 2.5, "pass"), (1.5, 2.0, "pass (stretch)"), (2.001, None, "fall short")],
)
def test_verdicts_compare_paired_rounds(ratio: float, stretch: float | None, verdict: str) -> None:
    measured = result(own={0: 1.0, 1: 3.0, 2: 10.0}, peer={0: 2.0, 1: 6.0, 2: 20.0})
    (judged,) = judge([goal(ratio, stretch)], measured)
    assert judged.measured == 2.0
    assert judged.verdict == verdict


def test_only_goals_of_this_case_and_measure_are_judged() -> None:
    others = [
        Goal("another case", "forward", "own", "peer", 1.0),
        Goal(CASE.name, "forward+backward", "own", "peer", 1.0),
    ]
    assert judge(others, result(own={0: 1.0}, peer={0: 1.0})) == []


def test_an_absent_side_is_not_measured_and_tells_why() -> None:
    measured = result(own={0: 1.0})
    measured.missing.append(Missing("peer", "not installed"))
    (absent, unselected) = judge([goal(1.0), goal(1.0, peer="other")], measured)
    assert (absent.verdict, absent.reason) == ("not measured", "peer: not installed")
    assert unselected.reason == "other: not selected"


def test_check_needs_a_measured_goal_and_no_short_one() -> None:
    measured = result(own={0: 1.0}, peer={0: 2.0})
    assert check([measured]) == "no goal was measured"
    measured.goals = judge([goal(1.5), goal(1.0, peer="other")], measured)
    assert check([measured]) is None
    measured.goals = judge([goal(1.5), goal(3.0)], measured)
    problem = check([measured])
    assert problem is not None
    assert "own 2x peer, goal 3x" in problem


@pytest.mark.parametrize(
    ("quantity", "limit", "verdict"),
    [
        ("share_of_logits", 0.1, "pass"),
        ("share_of_logits", 0.09, "fall short"),
        ("times_lower_bound", 2.0, "pass"),
        ("times_lower_bound", 1.9, "fall short"),
    ],
)
def test_memory_goals_bound_what_fresh_processes_needed(quantity: str, limit: float, verdict: str) -> None:
    wanted = [MemoryGoal(CASE.name, "forward", "own", quantity, limit)]
    measured = result(own={0: 1.0})
    (judged,) = judge(wanted, measured)
    assert judged.verdict == "not measured"
    measured.rows[0].memory = PeakMemory(peak=200, results=100, lower_bound=100, logits=1000)
    measured.goals = judge(wanted, measured)
    assert [goal.verdict for goal in measured.goals] == [verdict]
    assert (check([measured]) is None) == (verdict == "pass")


@pytest.mark.parametrize(
    ("seconds", "stretch", "verdict"), [(2.0, None, "pass"), (2.0, 1.5, "pass (stretch)"), (0.9, 0.5, "fall short")]
)
def test_time_goals_bound_the_median_on_their_device(seconds: float, stretch: float | None, verdict: str) -> None:
    wanted = [TimeGoal(CASE.name, "forward", "own", "a GPU", seconds, stretch)]
    measured = result(own={0: 1.0, 1: 1.0, 2: 9.0})
    assert judge(wanted, measured, "a GPU") == []  # this is a result of the CPU
    measured.backend = "cuda"
    (judged,) = judge(wanted, measured, "a GPU")
    assert (judged.measured, judged.verdict) == (1.0, verdict)
    measured.goals = [judged]
    problem = check([measured])
    assert (problem is None) == (verdict != "fall short")
    assert problem is None or "own 1e+03 ms, goal 900 ms" in problem
    (elsewhere,) = judge(wanted, measured, "another GPU")
    assert (elsewhere.verdict, elsewhere.reason) == ("not measured", "the GPU here is called another GPU")


def test_a_goal_of_one_backend_is_not_judged_on_another() -> None:
    measured = result(own={0: 1.0}, peer={0: 2.0})
    wanted = [
        Goal(CASE.name, "forward", "own", "peer", 1.0),
        Goal(CASE.name, "forward", "own", "peer", 3.0, backend="cuda"),
    ]
    assert [goal.verdict for goal in judge(wanted, measured)] == ["pass"]
    measured.backend = "cuda"
    assert [goal.verdict for goal in judge(wanted, measured)] == ["fall short"]


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.74, "fall short"), (0.75, "pass"), (0.86, "pass (stretch)"), (None, "not measured")]
)
def test_shares_of_the_peak_of_the_run(share: float | None, verdict: str) -> None:
    measured = result(own={0: 1.0}, peer={0: 1.0})
    measured.rows[0].peak_share = share
    wanted = ShareGoal(CASE.name, "forward", "own", 0.75, 0.85)
    measured.goals = judge([wanted, replace(wanted, variant="absent")], measured)
    ours, absent = measured.goals
    assert (ours.verdict, absent.verdict) == (verdict, "not measured")
    assert goal_text(ours).startswith("≥ 75% of peak, stretch 85%: ")
    assert _wanted(wanted) == "≥ 75% of the limit measured in the run, stretch 85%"
    problem = check([measured])
    assert (problem is None) == (share is not None and share >= 0.75)


def test_shares_on_the_device_that_a_goal_names() -> None:
    measured = result(own={0: 1.0})
    measured.rows[0].peak_share, measured.backend = 0.7, "cuda"
    wanted = ShareGoal(CASE.name, "forward", "own", 0.6, backend="cuda", device="a GPU")
    (here,), (elsewhere,) = judge([wanted], measured, "a GPU"), judge([wanted], measured, "another GPU")
    assert (here.measured, here.verdict) == (0.7, "pass")
    assert (elsewhere.verdict, elsewhere.reason) == ("not measured", "the GPU here is called another GPU")
    assert _wanted(wanted) == "≥ 60% of the limit measured in the run on a GPU"


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [(499e12, "fall short"), (500e12, "pass"), (600e12, "pass (stretch)"), (None, "not measured")],
)
def test_rates_of_what_was_executed(rate: float | None, verdict: str) -> None:
    measured = result(own={0: 1.0})
    measured.rows[0].flops, measured.backend = rate, "cuda"
    wanted = RateGoal(CASE.name, "forward", "own", "a GPU", 500e12, 600e12)
    (judged,), (elsewhere,) = judge([wanted], measured, "a GPU"), judge([wanted], measured, "another GPU")
    assert (judged.measured, judged.verdict) == (rate, verdict)
    assert elsewhere.verdict == "not measured"
    assert "≥ 500, stretch 600 TFLOP/s on a GPU: " in goal_text(judged)
    assert _wanted(wanted) == "≥ 500, stretch 600 TFLOP/s on a GPU"
    measured.goals = [judged]
    problem = check([measured])
    assert (problem is None) == (rate is not None and rate >= 500e12)
    assert verdict != "fall short" or "own 499 TFLOP/s, goal 500" in (problem or "")


def test_sizes_kept_between_calls() -> None:
    measured = result(own={0: 1.0}, peer={0: 1.0}, other={0: 1.0})
    measured.rows[0].keeps, measured.rows[1].keeps = 27, 100
    wanted = [SizeGoal(CASE.name, "forward", "own", peer, limit) for peer, limit in (("peer", 0.28), ("peer", 0.26))]
    measured.goals = judge([*wanted, SizeGoal(CASE.name, "forward", "own", "other", 1.0)], measured)
    assert [goal.verdict for goal in measured.goals] == ["pass", "fall short", "not measured"]
    assert "keeps ≤ 0.28× peer: 0.270×" in goal_text(measured.goals[0])
    assert "own keeps 0.27x peer, goal 0.26x" in (check([measured]) or "")
    assert measured.to_json()["rows"][0]["kept_bytes"] == 27
