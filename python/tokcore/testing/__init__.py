"""Case tables, numerics and timing: what the tests, ``tokcore bench`` and ``tokcore verify`` share."""

from __future__ import annotations

import importlib
import pkgutil

from tokcore.testing.table import Case, Goal, OpTable, Variant

__all__ = ["Case", "Goal", "OpTable", "Variant", "tables"]


def tables() -> dict[str, OpTable]:
    """The case table of every op by name: the ``TABLE`` of each module in ``tokcore.testing.cases`` that has one."""
    from tokcore.testing import cases

    found: dict[str, OpTable] = {}
    for info in sorted(pkgutil.iter_modules(cases.__path__), key=lambda info: info.name):
        table = getattr(importlib.import_module(f"{cases.__name__}.{info.name}"), "TABLE", None)
        if isinstance(table, OpTable):
            found[table.op] = table
    return found
