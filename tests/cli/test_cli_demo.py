from __future__ import annotations

from pathlib import Path

import pytest
from toy import Invoke

from tokcore.cli import demo


def test_options_reach_the_demo_and_its_exit_code_comes_back(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[object, ...]] = []

    def run_demo(*words: object) -> int:
        calls.append(words)
        return len(calls) - 1

    monkeypatch.setattr(demo, "run_demo", run_demo)
    words = ("demo", "--quick", "--out", tmp_path, "--cache", tmp_path / "cache", "--seed", 7)
    assert [invoke(*words).exit_code for _ in range(2)] == [0, 1]
    assert calls == [(True, tmp_path, tmp_path / "cache", 7)] * 2


def test_what_the_demo_lacks_is_one_line(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_demo(*words: object) -> int:
        raise ImportError("tokcore demo: missing tokenizers; install the extra: pip install 'tokcore[demo]'")

    monkeypatch.setattr(demo, "run_demo", run_demo)
    done = invoke("demo", "--out", tmp_path)
    assert done.exit_code == 2
    assert done.output == "tokcore: tokcore demo: missing tokenizers; install the extra: pip install 'tokcore[demo]'\n"
    (tmp_path / "file").touch()
    assert "is not a folder" in invoke("demo", "--out", tmp_path / "file").output
