from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import Invoke

QUICK = ("bench", "--op", "toy", "--seconds", "0")


def test_every_row_has_its_figures_and_the_peers_that_are_missing_are_named(invoke: Invoke) -> None:
    done = invoke(*QUICK, "--measure", "forward")
    assert done.exit_code == 0, done.output
    for text in ("median ms", "IQR ms", "GFLOP/s", "× torch", "max error", "small,fp32", "pass"):
        assert text in done.output
    assert "missing absent: not installed" in done.output
    assert "missing broken: RuntimeError: no such kernel\n" in done.output
    assert "not measured" in done.output
    assert "wide,bf16" not in done.output  # it lacks the tag


def test_the_reproduction_command_names_case_and_measure(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKCORE_LOG", "a b")
    done = invoke(*QUICK, "--measure", "forward", "--against", "torch", "--threads", torch.get_num_threads())
    expected = (
        f"reproduce: TOKCORE_LOG='a b' tokcore bench --op toy --seconds 0 --threads {torch.get_num_threads()} --seed 0 "
        "--against torch --measure forward --case small,fp32"
    )
    assert expected in done.output


def test_json_holds_everything(invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "bench.json"
    done = invoke(*QUICK, "--case", "small*", "--case", "wide,bf16", "--json", file)
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(file.read_text())
    assert set(document) == {
        "schema", "kind", "op", "command", "environment", "settings", "peaks", "results",
    }  # fmt: skip
    assert {"cpu", "isa", "threads", "torch", "python", "commit", "date", "variables"} <= set(document["environment"])
    keys = [(result["case"], result["measure"]) for result in document["results"]]
    assert keys == [
        ("small,fp32", "forward"),
        ("small,fp32", "forward+backward"),
        ("wide,bf16", "forward"),
        ("wide,bf16", "forward+backward"),
    ]
    first, backward, wide, _ = document["results"]
    assert first["baseline"] == "torch"
    assert first["parameters"] == {"T": 8, "C": 4, "V": 16, "dtype": "float32"}
    assert [goal["verdict"] for goal in first["goals"]] == ["pass", "not measured"]
    assert {missing["variant"] for missing in first["missing"]} == {"absent", "broken"}
    row = first["rows"][0]
    assert row["variant"] == "tokcore"
    assert row["rounds"] == len(row["samples_seconds"]) >= 5
    assert row["lower_quartile_seconds"] <= row["median_seconds"] <= row["upper_quartile_seconds"]
    assert row["flops_per_second"] == pytest.approx(2 * 8 * 4 * 16 / row["median_seconds"])
    assert row["max_error"]["output"] == "product"
    assert row["max_error"]["value"] < 1e-6
    assert 1e-6 < wide["rows"][0]["max_error"]["value"] < 1e-2
    assert backward["rows"][1]["rounds"] == 1  # a slow peer, and no time


def test_memory_is_shown_with_its_shares(invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = invoke("bench", "--op", "hungry", "--seconds", "0", "--memory", "--json", file)
    assert done.exit_code == 0, done.output
    assert "extra memory" in done.output
    assert "of logits" in done.output
    assert "× lower bound" not in done.output  # a forward has none
    (row,) = json.loads(file.read_text())["results"][0]["rows"]
    assert 62 << 20 <= row["memory"]["extra_bytes"] <= 68 << 20


def test_plots_come_in_two_variants_with_their_data(invoke: Invoke, tmp_path: Path) -> None:
    done = invoke(*QUICK, "--plot", tmp_path / "toy.png")
    assert done.exit_code == 0, done.output
    assert {file.name for file in tmp_path.iterdir()} == {"toy-light.png", "toy-dark.png", "toy.csv"}
    for name in ("toy-light.png", "toy-dark.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "toy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["tokcore", "torch"] * 2
    assert float(rows[0]["median_ms"]) > 0


def test_check_exits_with_one_when_a_goal_falls_short(invoke: Invoke) -> None:
    short = invoke("bench", "--op", "troubled", "--seconds", "0", "--measure", "forward", "--check")
    assert short.exit_code == 1
    assert "fall short" in short.output
    assert invoke(*QUICK, "--measure", "forward", "--check").exit_code == 0
    nothing = invoke(*QUICK, "--measure", "forward+backward", "--check")
    assert nothing.exit_code == 1
    assert "no goal was measured" in nothing.output


def test_a_failing_variant_of_tokcore_fails_the_command(invoke: Invoke) -> None:
    words = ("--seconds", "0", "--measure", "forward", "--case", "raises", "--no-error")
    done = invoke("bench", "--op", "troubled", *words)
    assert done.exit_code == 1
    assert "missing tokcore: ValueError: tokcore.toy: argument 'e': expected peace, got trouble" in done.output


def test_against_none_leaves_tokcore_alone(invoke: Invoke) -> None:
    done = invoke(*QUICK, "--measure", "forward", "--against", "none")
    assert done.exit_code == 0
    assert "missing" not in done.output
    assert "≥ 2× absent: not measured (absent: not selected)" in done.output


def test_list_runs_nothing(invoke: Invoke) -> None:
    done = invoke("bench", "--op", "toy", "--list")
    assert done.exit_code == 0
    for text in ("small,fp32", "verify", "forward+backward", "broken", "2×", "and the 1 cases"):
        assert text in done.output
    assert "wide,bf16" not in done.output
    assert "median" not in done.output


def test_a_pattern_is_about_cases_to_time(invoke: Invoke) -> None:
    done = invoke(*QUICK, "--measure", "forward", "--case", "*,*")
    assert done.exit_code == 0, done.output
    assert "small,fp32" in done.output
    assert "wide,bf16" not in done.output  # it is there to be verified, and can still be named
    alone = invoke(*QUICK, "--case", "wide*")
    assert alone.exit_code == 2
    assert alone.output == "tokcore: 'wide*' matches no case to time, and 1 others of toy: name one in full\n"
    assert invoke("verify", "--op", "toy", "--case", "*32", "--list").output == "toy small,fp32\n"


def test_cases_that_no_variant_is_for_end_in_one_line(invoke: Invoke) -> None:
    done = invoke("bench", "--op", "idle", "--case", "small,fp32")
    assert done.exit_code == 2
    assert done.output == "tokcore: idle has no variant that is meant for small,fp32\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--op", "tea"), "unknown op 'tea'; known: toy, troubled, hungry, idle"),
        (("--op", "toy", "--case", "big"), "unknown case 'big'; known: small,fp32, wide,bf16"),
        (("--op", "toy", "--measure", "sideways"), "unknown measure 'sideways'; known: forward, forward+backward"),
        (("--op", "toy", "--against", "torch,jax"), "unknown peer 'jax'; known: torch, absent, broken"),
        (("--op", "toy", "--backend", "abacus"), "unknown backend 'abacus'; known: cpu, cuda"),
    ],
)
def test_bad_names_end_in_one_line_and_exit_code_two(invoke: Invoke, words: tuple[str, ...], message: str) -> None:
    done = invoke("bench", *words)
    assert done.exit_code == 2
    assert done.output == f"tokcore: {message}\n"


def test_a_file_that_cannot_be_written_is_told_before_the_work(invoke: Invoke, tmp_path: Path) -> None:
    done = invoke(*QUICK, "--json", tmp_path)
    assert done.exit_code == 2
    assert "is a folder" in done.output
    assert "median" not in done.output
