"""The case tables of the cross-entropy family and the tests of its public functions, on the CUDA kernels."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))

import linear_logprobs_simt as cuda
import pytest
from support import assert_error_rule
from test_determinism import test_ignored_neighbours_change_no_bit as test_ignored_neighbours_change_no_bit
from test_determinism import test_shift_changes_no_bit as test_shift_changes_no_bit
from test_filter import *  # noqa: F403
from test_linear_cross_entropy import *  # noqa: F403
from test_linear_logprobs import *  # noqa: F403
from test_nonfinite import *  # noqa: F403
from test_strategies import *  # noqa: F403

from tokcore.testing import tables
from tokcore.testing.table import Case

del test_targets_out_of_range  # type: ignore[name-defined]  # noqa: F821 - the device does not report them

FAMILY = ("linear_cross_entropy", "linear_logprobs")
TABLES = {op: table for op, table in tables().items() if op in FAMILY}
QUICK = [(op, case.name) for op, table in TABLES.items() for case in table.cases if "quick" in case.tags]

# Beyond the tables, whose shapes are odd: rows of whole 16 bytes, several tiles of rows, vocabulary blocks and stages.
ALIGNED = ((130, 300, 40), (260, 33, 64), (6, 700, 104), (70, 129, 136))


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with cuda.in_place_of_the_cpu():
        yield


@pytest.mark.parametrize(("op", "name"), QUICK, ids=lambda value: str(value))
def test_case(op: str, name: str) -> None:
    table = TABLES[op]
    assert_error_rule(table, table.make_inputs(table.case(name), "cpu", 0))


def aligned_cases() -> Iterator[tuple[str, Case, int]]:
    """Every option in every dtype, the aligned shapes in turn; fp32 has the same kernels everywhere."""
    for op, table in TABLES.items():
        for n, case in enumerate(case for case in table.cases if "quick" in case.tags):
            T, V, C = ALIGNED[n % len(ALIGNED)]
            aligned = Case(f"{n}-{case.name}", {**case.parameters, "T": T, "V": V, "C": C}, case.tags)
            yield op, aligned, 80
            if case.parameters["dtype"].itemsize == 2:
                yield op, aligned, 90


@pytest.mark.parametrize(("op", "case", "capability"), aligned_cases(), ids=lambda value: getattr(value, "name", value))
def test_aligned_case(op: str, case: Case, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.SETUP, "capability", capability)
    table = TABLES[op]
    assert_error_rule(table, table.make_inputs(case, "cpu", 0))
