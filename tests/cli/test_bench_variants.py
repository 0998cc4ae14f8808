"""Every variant of tokcore in a case table can be timed on the cases it says it applies to; every goal names a row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tokcore.cli.bench.run import max_error
from tokcore.cli.gpu_check.stage import spread
from tokcore.testing import tables
from tokcore.testing.backend import find_backend
from tokcore.testing.cases import _attention
from tokcore.testing.table import Case, OpTable, Variant

TABLES = tables()
# Of an H200 by its data sheet: memory, products of 16 and of 8 bits, without sparsity.
PEAK_BYTES, PEAK_FLOPS, PEAK_8_BIT = 4.8e12, 0.989e15, 1.979e15


_MOST = {"B": 2, "H": 4, "Hkv": 4, "layers": 2, "T": 8, "V": 300, "C": 32, "R": 40, "S": 64, "simulations": 20}
_LENGTHS = ("L", "M", "N")  # of which N may be nodes of a tree


def shrunk(case: Case) -> Case:
    """The case with the same options and small sizes, as it runs in a moment on a CPU."""
    p = dict(case.parameters)
    for name, most in _MOST.items():
        p[name] = min(p[name], most) if name in p else None
    for name in _LENGTHS:
        p[name] = min(p[name], 256) if name in p else None
    if "grid" in p:
        p["grid"], before_after = (4, 6, 10), sum(p["text"])
        p["M"] = p["N"] = 240 + before_after
    return replace(case, parameters={name: value for name, value in p.items() if value is not None})


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


def runnable(variant: Variant, case: Case) -> bool:
    """Not what compiles for a minute, needs a GPU, or is another project's plain Python."""
    slow = any(word in variant.name for word in ("compile", "QuantizedCache", "plain Python"))
    return variant.applies(case) and "cpu" in variant.backends and not slow and variant.unavailable(case) is None


@pytest.mark.parametrize("op", TABLES)
def test_timed_cases_run_at_small_sizes_and_agree_with_the_reference(op: str) -> None:
    table = TABLES[op]
    for name in spread([case.name for case in table.cases if case.timed], 12):
        full = table.case(name)
        case = shrunk(full)
        inputs = table.make_inputs(case, "cpu", 0)
        reference = table.reference(inputs) if table.reference_bytes(case) < float("inf") else {}
        for variant in (variant for variant in table.variants if runnable(variant, case)):
            outputs = variant.prepare(case, inputs)()
            error = max_error(table.sampled(dict(outputs)) if isinstance(outputs, dict) else outputs, reference)
            coarse = any(word in f"{full.name} {variant.name}" for word in ("int2", "int4", "q4", "filtered"))
            allowed = 1.0 if coarse else 0.05
            assert error is None or error.value < allowed, (full.name, variant.name, error)


@pytest.mark.parametrize("op", ["block_sparse_attention", "paro_attention"])
def test_some_rows_of_the_reference_are_those_of_the_whole(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = TABLES[op]
    for full in [case for case in table.cases if "bench-cuda" in case.tags and case.parameters["D"] == 64][-3:]:
        case = shrunk(full)
        inputs = table.make_inputs(case, "cpu", 0)
        whole = table.reference(inputs)
        monkeypatch.setattr(_attention, "_LARGE", 1)
        some, expected = table.reference(inputs)["out"], table.sampled(whole)["out"]
        monkeypatch.undo()
        assert some.shape == (*whole["out"].shape[:1], 2, 64, 64)
        assert torch.allclose(some, expected, rtol=0.0, atol=1e-12)


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
        peak = PEAK_8_BIT if "int8" in variant.name else PEAK_FLOPS
        seconds: float | None = getattr(goal, "seconds", None)
        if seconds is not None:
            assert variant.bytes is None or variant.bytes(case) / PEAK_BYTES < seconds, goal
            leaves_out = "filtered" in variant.name  # much of what its FLOPs count
            assert variant.flops is None or leaves_out or variant.flops(case) / peak < seconds, goal
        rate: float | None = getattr(goal, "flops_per_second", None)
        if rate is not None:
            assert variant.flops is not None, goal
            assert rate < peak, goal
        if hasattr(goal, "share"):
            assert variant.bytes is not None or variant.flops is not None, goal


def test_sampled_rows_of_blocks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    table = TABLES["attention_block_scores"]
    case = shrunk(next(case for case in table.cases if "bench-cuda" in case.tags))
    inputs = table.make_inputs(case, "cpu", 0)
    whole = table.reference(inputs)
    monkeypatch.setattr(_attention, "_LARGE", 1)
    some, expected = table.reference(inputs)["scores"], table.sampled(whole)["scores"]
    assert some.shape == (1, 2, 2, 4)
    assert torch.allclose(some, expected, rtol=0.0, atol=1e-12)
