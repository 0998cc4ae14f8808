"""What a stage is given and what it returns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tokcore.testing.table import OpTable
from tokcore.testing.worker import load_tables

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
GRACE_SECONDS = 20.0  # that a worker may take beyond its time before it is stopped: it may be hanging


@dataclass(frozen=True)
class Context:
    """Where and on what the stages run; ``device`` "cpu" is a rehearsal."""

    device: str
    tables: str  # "module:function", as workers take it
    seed: int = 0

    def load(self) -> dict[str, OpTable]:
        """The case tables of the ops that run on the device."""
        return {op: table for op, table in load_tables(self.tables).items() if table.runs_on(self.device)}


@dataclass
class Stage:
    """One stage's outcome: its status, what a reader wants to know, and the data behind it."""

    name: str
    status: str
    lines: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


Work = Callable[[Context, float], Stage]  # (context, seconds it may take)


def run_stages(
    plan: list[tuple[str, Work, float]], context: Context, minutes: float, on_stage: Callable[[Stage], None]
) -> list[Stage]:
    """Runs the stages in order, each with its share of the time and what those before it left over. A stage that raises
    has failed; the first one decides whether there is anything to run at all."""
    end = time.monotonic() + 60.0 * minutes
    stages: list[Stage] = []
    for number, (name, work, share) in enumerate(plan):
        start = time.monotonic()
        left = end - start
        shares = sum(share for _, _, share in plan[number:])
        if stages and stages[0].status != PASSED:
            stage = Stage(name, NOT_RUN, [f"the stage {stages[0].name} did not pass"])
        elif left <= 0.0:
            stage = Stage(name, NOT_RUN, ["no time was left"])
        else:
            try:
                stage = work(context, left * share / shares)
            except Exception as error:
                stage = Stage(name, FAILED, [f"{type(error).__name__}: {error}"])
        stage.seconds = time.monotonic() - start
        stages.append(stage)
        on_stage(stage)
    return stages


def spread(names: list[str], most: int) -> list[str]:
    """At most ``most`` of ``names``, evenly spread, the first and the last among them."""
    if len(names) <= most:
        return names
    return [names[round(place * (len(names) - 1) / max(1, most - 1))] for place in range(most)]
