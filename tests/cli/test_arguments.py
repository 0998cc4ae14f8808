from __future__ import annotations

from pathlib import Path

import pytest
import typer

from tokcore.cli import arguments


def test_of_many_names_the_nearest_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        arguments.unknown("case", "T=12", [f"T={number}" for number in range(1000)])
    assert ended.value.exit_code == 2
    message = capsys.readouterr().err
    assert message.startswith("tokcore: unknown case 'T=12'; nearest of the 1000 known: T=12")
    assert message.count("T=") == 7  # the unknown name and six of the known
    assert message.count("\n") == 1


def test_names_are_split_at_commas_and_taken_once() -> None:
    assert arguments.split_names(" torch, absent,,torch ") == ["torch", "absent", "torch"]
    assert arguments.split_names(None) == []
    assert arguments.choose("peer", ["b", "a", "b"], ["a", "b", "c"]) == ["b", "a"]
    assert arguments.choose("peer", [], ["a", "b"]) == ["a", "b"]


def test_names_may_hold_commas() -> None:
    known = ("flex (compiled, same blocks)", "torch", "softmax, gather, scatter", "softmax")
    text = "torch,flex (compiled, same blocks), softmax, gather, scatter,softmax, tea"
    found = ["torch", "flex (compiled, same blocks)", "softmax, gather, scatter", "softmax", "tea"]
    assert arguments.split_known(text, known) == found
    assert arguments.split_known(None, known) == []


def test_a_result_file_is_tried_without_leaving_it_behind(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "result.json"
    arguments.check_writable(file, None)
    assert list(file.parent.iterdir()) == []
    file.write_text("kept")
    arguments.check_writable(file)
    assert file.read_text() == "kept"
    with pytest.raises(typer.Exit):
        arguments.check_writable(file / "below a file")
