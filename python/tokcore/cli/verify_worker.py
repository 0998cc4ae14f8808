"""Verifies cases of one op at this process's instruction-set level; started by ``tokcore verify``."""

from __future__ import annotations

from typing import Any

from tokcore import _library
from tokcore.testing.numerics import compare
from tokcore.testing.table import Case, OpTable
from tokcore.testing.worker import answer, load_tables, read_request


def verify_case(table: OpTable, case: Case, seed: int) -> dict[str, Any]:
    """Compares tokcore with the fp64 reference; the PyTorch composition in the same dtype sets the tolerance."""
    inputs = table.make_inputs(case, "cpu", seed)
    comparisons = compare(table.run(inputs), table.composition(inputs), table.reference(inputs))
    return {
        "case": case.name,
        "ok": bool(comparisons) and all(comparison.ok for comparison in comparisons),
        "comparisons": [
            {
                "output": comparison.name,
                "error": float(comparison.error),
                "allowed": float(comparison.allowed),
                "ok": bool(comparison.ok),
            }
            for comparison in comparisons
        ],
    }


def attempt(table: OpTable, case: Case, seed: int) -> dict[str, Any]:
    """:func:`verify_case`; whatever a case raises is its failure, not the end of the others."""
    try:
        return verify_case(table, case, seed)
    except Exception as error:
        return {"case": case.name, "ok": False, "comparisons": [], "failure": f"{type(error).__name__}: {error}"}


def _work() -> None:
    request = read_request()
    table = load_tables(request["tables"])[request["op"]]
    answer(isa=_library.cpu_isa())
    for name in request["cases"]:
        answer(**attempt(table, table.case(name), request["seed"]))


if __name__ == "__main__":
    _work()
