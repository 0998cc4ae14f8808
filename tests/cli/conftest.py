from __future__ import annotations

import pytest
import toy
from typer.testing import CliRunner

from tokcore.cli import arguments
from tokcore.cli.app import app


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> toy.Invoke:
    """Runs ``tokcore`` on the toy tables."""
    monkeypatch.delenv("COLUMNS", raising=False)  # it would decide where tables wrap
    monkeypatch.setattr(arguments, "TABLE_SOURCE", f"{toy.__name__}:tables")
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])
