from __future__ import annotations

import json
from pathlib import Path

from toy import Invoke

from tokcore import _library


def test_every_case_passes_at_every_level(invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "verify.json"
    done = invoke("verify", "--op", "toy", "--json", file)
    assert done.exit_code == 0, done.output
    results = json.loads(file.read_text())["results"]
    levels = _library.cpu_isa_levels()
    assert [(result["isa"], result["case"]) for result in results] == [
        (level, case) for level in levels for case in ("small,fp32", "wide,bf16")
    ]
    assert all(result["comparisons"][0]["output"] == "product" for result in results)


def test_failures_are_told_and_the_cases_behind_a_crash_still_run(invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "verify.json"
    done = invoke("verify", "--op", "troubled", "--isa", "baseline", "--json", file)
    assert done.exit_code == 1
    outcome = {result["case"]: result["ok"] for result in json.loads(file.read_text())["results"]}
    assert outcome == {"good": True, "raises": False, "crashes": False, "wrong": False, "good again": True}
    assert "failed raises at baseline: ValueError: tokcore.toy: argument 'e': expected peace" in done.output
    assert "failed crashes at baseline: the process ended: exit status 3" in done.output
    assert "failed wrong at baseline: product error" in done.output
    assert "reproduce: tokcore verify --op troubled --isa baseline --case wrong" in done.output
    assert "3 of 5 verifications failed" in done.output


def test_bad_names(invoke: Invoke) -> None:
    done = invoke("verify", "--op", "toy", "--isa", "mmx")
    assert done.exit_code == 2
    assert "unknown instruction-set level of this machine 'mmx'; known: baseline" in done.output
    assert invoke("verify", "--op", "tea").exit_code == 2
    assert invoke("verify", "--op", "toy", "--case", "big").exit_code == 2
    assert "--case needs --op" in invoke("verify", "--case", "big").output


def test_nothing_to_verify_is_no_success(invoke: Invoke) -> None:
    done = invoke("verify", "--op", "hungry")
    assert done.exit_code == 1
    assert done.output == "tokcore: there is no case to verify\n"


def test_list_names_op_and_case(invoke: Invoke) -> None:
    done = invoke("verify", "--op", "toy", "--list")
    assert (done.exit_code, done.output) == (0, "toy small,fp32\ntoy wide,bf16\n")
