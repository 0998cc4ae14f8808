"""What a stage is given and what it returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokcore.testing.table import OpTable
from tokcore.testing.worker import load_tables

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
GRACE_SECONDS = 20.0  # that a worker may take beyond its time before it is stopped: it may be hanging


FIRST = (  # what is called most comes first, so that it is done when time runs out; the other ops follow by name
    "linear_cross_entropy",
    "linear_logprobs",
    "block_sparse_attention",
    "paro_attention",
    "decode_attention",
    "kv_append",
    "verify_tree_sample",
    "sample",
)


@dataclass
class Stage:
    """One stage's outcome: its status, what a reader wants to know, and the data behind it."""

    name: str
    status: str
    lines: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Context:
    """Where and on what the stages run; ``device`` "cpu" is a rehearsal."""

    device: str
    tables: str  # "module:function", as workers take it
    seed: int = 0
    ops: tuple[str, ...] = ()  # only these; all that run on the device for none
    on_partial: Callable[[Stage], None] = lambda _: None  # told what a stage has so far, op by op

    def load(self) -> dict[str, OpTable]:
        """The case tables of the ops that run on the device, the most important ones first."""
        found = {op: table for op, table in load_tables(self.tables).items() if table.runs_on(self.device)}
        order = sorted(found, key=lambda op: (FIRST.index(op) if op in FIRST else len(FIRST), op))
        return {op: found[op] for op in order if not self.ops or op in self.ops}


def share_out(weights: Mapping[str, float], seconds: float) -> Iterator[tuple[str, float]]:
    """Each name with its share, by weight, of what is left of ``seconds`` when its turn comes: what a name leaves over,
    or takes too much of, is shared out among those behind it."""
    end = time.monotonic() + seconds
    left = sum(weights.values())
    for name, weight in weights.items():
        yield name, max(0.0, end - time.monotonic()) * (weight / left if left > 0.0 else 0.0)
        left -= weight


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
