from __future__ import annotations

from pathlib import Path

import pytest
import toy
import typer
from typer.testing import CliRunner

from tokcore.cli import arguments
from tokcore.cli.support import render, support

PAGE = typer.Typer()
PAGE.command()(support)


def test_the_page_has_every_option_and_backend() -> None:
    page = render({"toy": toy.TABLE})
    assert "| option | cpu | cuda |" in page
    assert "| `bias` | yes | no: not yet |" in page
    assert "| a\\|b | fp32 only | — |" in page
    assert "Checked by 2 verified cases in bfloat16, float32" in page


def test_check_fails_on_a_page_out_of_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "TABLE_SOURCE", "toy:tables")
    page = tmp_path / "support.md"
    run = CliRunner().invoke
    absent = run(PAGE, [str(page), "--check"])
    assert absent.exit_code == 1
    assert not page.exists()
    assert run(PAGE, [str(page)]).exit_code == 0
    assert run(PAGE, [str(page), "--check"]).exit_code == 0
    page.write_text(page.read_text() + "edited\n")
    stale = run(PAGE, [str(page), "--check"])
    assert stale.exit_code == 1
    assert "out of date" in stale.output
