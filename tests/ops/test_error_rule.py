"""Every case of every table: outputs and gradients within twice the error of PyTorch in the same dtype."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_error_rule

from tokcore.testing import tables
from tokcore.testing.cases._classifier import DTYPES
from tokcore.testing.cases.linear_cross_entropy import OPTIONS as LOSS_OPTIONS
from tokcore.testing.cases.linear_logprobs import OPTIONS as LOGPROBS_OPTIONS
from tokcore.testing.table import Case

TABLES = tables()
CASES = [(op, case.name) for op, table in TABLES.items() for case in table.cases if "verify" in case.tags]


@pytest.mark.parametrize(("op", "name"), CASES, ids=lambda value: str(value))
def test_case(op: str, name: str) -> None:
    table = TABLES[op]
    assert_error_rule(table, table.make_inputs(table.case(name), "cpu", 0))


sizes = st.integers(1, 80)


@pytest.mark.parametrize(
    ("op", "options"), [("linear_cross_entropy", LOSS_OPTIONS), ("linear_logprobs", LOGPROBS_OPTIONS)]
)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_shapes_and_options(op: str, options: dict[str, dict[str, object]], data: st.DataObject) -> None:
    T, V, C = data.draw(sizes), data.draw(st.integers(1, 300)), data.draw(sizes)
    chosen: dict[str, object] = {}
    for name in data.draw(st.sets(st.sampled_from(sorted(options)), max_size=4)):
        chosen |= options[name]
    if "label_smoothing" in chosen and "softcap" in chosen:
        chosen.pop("filter_eps", None)
    if "strategy" in chosen:
        for name in ("return_entropy", "filter_eps"):
            chosen.pop(name, None)
        if chosen.get("reduction") == "none":
            del chosen["reduction"]
    if T < 8:
        chosen.pop("shift", None)
    parameters = {"T": T, "V": V, "C": C, "dtype": data.draw(st.sampled_from(list(DTYPES))), **chosen}
    case = Case("drawn", parameters, frozenset({"verify"}))
    assert_error_rule(TABLES[op], TABLES[op].make_inputs(case, "cpu", data.draw(st.integers(0, 99))))
