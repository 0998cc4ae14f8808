"""Every variant of tokcore in a case table can be timed on the cases it says it applies to; every goal names a row."""

from __future__ import annotations

from typing import Any

import pytest

from tokcore.cli.gpu_check.stage import spread
from tokcore.testing import tables
from tokcore.testing.backend import find_backend
from tokcore.testing.table import OpTable, Variant

TABLES = tables()
PEAK_BYTES, PEAK_FLOPS = 4.8e12, 1.979e15  # of an H200 by its data sheet: memory, and 8-bit products without sparsity


def own_variants(table: OpTable) -> list[Variant]:
    return [variant for variant in table.variants if not variant.peer and "cpu" in variant.backends]


@pytest.mark.parametrize("op", [op for op, table in TABLES.items() if own_variants(table)])
def test_variants_run_on_the_cases_to_verify_that_they_apply_to(op: str) -> None:
    table = TABLES[op]
    for name in spread([case.name for case in table.cases if "verify" in case.tags], 5):
        case = table.case(name)
        for variant in own_variants(table):
            if not variant.applies(case) or variant.unavailable(case) is not None:
                continue
            variant.prepare(case, table.make_inputs(case, "cpu", 0))()
            for figure in (variant.flops, variant.bytes, variant.keeps):
                assert figure is None or figure(case) >= 0


@pytest.mark.parametrize("op", TABLES)
def test_goals_name_rows_that_are_timed_and_within_what_the_chip_can_do(op: str) -> None:
    table = TABLES[op]
    for goal in table.goals:
        case = table.case(goal.case)
        assert case.timed, goal
        assert "large" in case.tags or find_backend(goal.backend).case_tag in case.tags, goal
        peer: Any = getattr(goal, "peer", None)
        for name in (goal.variant, *([peer] if peer else [])):
            found = [v for v in table.variants if (v.name, v.measure) == (name, goal.measure) and v.applies(case)]
            assert len(found) == 1, (goal, name)
            assert goal.backend in found[0].backends, (goal, name)
        (variant,) = (
            v for v in table.variants if (v.name, v.measure) == (goal.variant, goal.measure) and v.applies(case)
        )
        seconds: float | None = getattr(goal, "seconds", None)
        if seconds is not None:
            assert variant.bytes is None or variant.bytes(case) / PEAK_BYTES < seconds, goal
            assert variant.flops is None or variant.flops(case) / PEAK_FLOPS < seconds, goal
        rate: float | None = getattr(goal, "flops_per_second", None)
        if rate is not None:
            assert variant.flops is not None, goal
            assert rate < PEAK_FLOPS, goal
        if hasattr(goal, "share"):
            assert variant.bytes is not None or variant.flops is not None, goal
