from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toy import Invoke

import tokcore
from tokcore import _library


def test_info_tells_what_is_here(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKCORE_LOG", "1")
    file = tmp_path / "info.json"
    done = invoke("info", "--json", file)
    assert done.exit_code == 0, done.output
    for text in (tokcore.__version__, torch.__version__, _library.cpu_isa(), "TOKCORE_LOG=1", "library tokcore_cpu"):
        assert text in done.output
    document = json.loads(file.read_text())
    assert document["isa_levels"] == list(_library.cpu_isa_levels())
    assert document["loaded"] == _library.loaded
    assert document["variables"] == {"TOKCORE_LOG": "1"}


def test_info_of_an_op_is_its_support_table(invoke: Invoke) -> None:
    done = invoke("info", "--op", "toy")
    assert done.exit_code == 0
    for text in ("bias", "yes", "no: not yet", "fp32 only"):
        assert text in done.output
    unknown = invoke("info", "--op", "tea")
    assert (unknown.exit_code, unknown.output) == (2, "tokcore: unknown op 'tea'; known: toy, troubled, hungry, idle\n")
