"""What a benchmark found, as plain data; the JSON file, the tables, the plots and the goals are made from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tokcore.testing.memory import PeakMemory
from tokcore.testing.table import Case
from tokcore.testing.timing import Samples, Summary


@dataclass(frozen=True)
class MaxError:
    """The worst output of a variant: max |output - reference| / max |reference|."""

    output: str
    value: float


@dataclass
class Row:
    """One variant on one case. Rates are per second; ``peak`` is the nearer of the limits that this run measured."""

    variant: str
    peer: bool
    summary: Summary
    samples: Samples
    timed: str = "wall clock"  # how: by the wall clock, by a GPU's events, from a replayed graph
    flops: float | None = None
    bytes: float | None = None
    peak: tuple[str, float] | None = None
    peak_share: float | None = None  # of ``peak``
    speedup: float | None = None  # over the case's baseline, from paired rounds
    error: MaxError | None = None
    keeps: int | None = None  # bytes allocated between calls
    memory: PeakMemory | None = None
    memory_missing: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The row in seconds, FLOP/s and bytes."""
        memory = self.memory
        return {
            "variant": self.variant,
            "peer": self.peer,
            "median_seconds": self.summary.median,
            "lower_quartile_seconds": self.summary.lower_quartile,
            "upper_quartile_seconds": self.summary.upper_quartile,
            "rounds": self.summary.rounds,
            "timed": self.timed,
            "flops_per_second": self.flops,
            "bytes_per_second": self.bytes,
            "peak": None if self.peak is None else {"kind": self.peak[0], "rate": self.peak[1]},
            "peak_share": self.peak_share,
            "speedup": self.speedup,
            "kept_bytes": self.keeps,
            "max_error": None
            if self.error is None
            else {"output": self.error.output, "value": finite(self.error.value)},
            "memory": None
            if memory is None
            else {
                "peak_bytes": memory.peak,
                "result_bytes": memory.results,
                "extra_bytes": memory.extra,
                "share_of_logits": memory.share_of_logits,
                "times_lower_bound": memory.times_lower_bound,
            },
            "memory_missing": self.memory_missing,
            "samples_seconds": {str(number): seconds for number, seconds in self.samples.items()},
        }


@dataclass(frozen=True)
class Missing:
    """A variant without a row. ``failed``: it is tokcore's own and raised, which makes the command fail."""

    variant: str
    reason: str
    failed: bool = False


@dataclass(frozen=True)
class GoalResult:
    """A goal beside what was measured; ``measured`` is None when one of its two sides did not run."""

    variant: str
    peer: str
    ratio: float
    stretch: float | None
    measured: float | None
    reason: str | None = None

    @property
    def verdict(self) -> str:
        """ "pass", "pass (stretch)", "fall short" or "not measured"."""
        if self.measured is None:
            return "not measured"
        if self.measured < self.ratio:
            return "fall short"
        return "pass (stretch)" if self.stretch is not None and self.measured >= self.stretch else "pass"


@dataclass(frozen=True)
class MemoryGoalResult:
    """A bound on memory beside what was measured; ``measured`` is None without a measurement."""

    variant: str
    quantity: str
    limit: float
    measured: float | None

    @property
    def verdict(self) -> str:
        """ "pass", "fall short" or "not measured"."""
        if self.measured is None:
            return "not measured"
        return "pass" if self.measured <= self.limit else "fall short"


@dataclass(frozen=True)
class TimeGoalResult:
    """A bound on the time of a call beside what was measured; ``measured`` is None when it did not run."""

    variant: str
    device: str
    seconds: float
    stretch: float | None
    measured: float | None
    reason: str | None = None

    @property
    def verdict(self) -> str:
        """ "pass", "pass (stretch)", "fall short" or "not measured"."""
        if self.measured is None:
            return "not measured"
        if self.measured > self.seconds:
            return "fall short"
        return "pass (stretch)" if self.stretch is not None and self.measured <= self.stretch else "pass"


@dataclass(frozen=True)
class RateGoalResult:
    """A bound on executed FLOPs a second beside what was measured; ``measured`` is None when it did not run."""

    variant: str
    device: str
    flops_per_second: float
    stretch: float | None
    measured: float | None
    reason: str | None = None

    @property
    def verdict(self) -> str:
        """ "pass", "pass (stretch)", "fall short" or "not measured"."""
        if self.measured is None:
            return "not measured"
        if self.measured < self.flops_per_second:
            return "fall short"
        return "pass (stretch)" if self.stretch is not None and self.measured >= self.stretch else "pass"


@dataclass(frozen=True)
class ShareGoalResult:
    """A share of the limit that binds a variant beside what was measured; ``measured`` is None when it did not run."""

    variant: str
    share: float
    stretch: float | None
    measured: float | None
    reason: str | None = None

    @property
    def verdict(self) -> str:
        """ "pass", "pass (stretch)", "fall short" or "not measured"."""
        if self.measured is None:
            return "not measured"
        if self.measured < self.share:
            return "fall short"
        return "pass (stretch)" if self.stretch is not None and self.measured >= self.stretch else "pass"


@dataclass(frozen=True)
class SizeGoalResult:
    """A bound on allocated bytes, as a multiple of the peer's, beside what was found."""

    variant: str
    peer: str
    limit: float
    measured: float | None
    reason: str | None = None

    @property
    def verdict(self) -> str:
        """ "pass", "fall short" or "not measured"."""
        if self.measured is None:
            return "not measured"
        return "pass" if self.measured <= self.limit else "fall short"


AnyGoalResult = GoalResult | MemoryGoalResult | TimeGoalResult | RateGoalResult | ShareGoalResult | SizeGoalResult


@dataclass
class CaseResult:
    """All rows of one case and measure; ``baseline`` is the peer that speed-ups refer to."""

    case: Case
    measure: str
    backend: str = "cpu"
    baseline: str | None = None
    rows: list[Row] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    goals: list[AnyGoalResult] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The case with its rows, goals and missing variants."""
        return {
            "case": self.case.name,
            "parameters": json_parameters(self.case.parameters),
            "measure": self.measure,
            "backend": self.backend,
            "baseline": self.baseline,
            "rows": [row.to_json() for row in self.rows],
            "missing": [vars(missing) for missing in self.missing],
            "goals": [{**vars(goal), "verdict": goal.verdict} for goal in self.goals],
        }


def finite(value: float) -> float | None:
    """The value, or None for the infinities and NaN that JSON has no word for."""
    return value if math.isfinite(value) else None


def json_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Case parameters with dtypes and other objects as text."""

    def plain(value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else str(value)

    return {name: plain(value) for name, value in parameters.items()}
