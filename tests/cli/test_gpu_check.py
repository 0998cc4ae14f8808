"""The check of a GPU, rehearsed on the CPU and on tables with every kind of trouble."""

from __future__ import annotations

import dataclasses
import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

import tokcore
from tokcore.cli.gpu_check import __main__ as gpu_check_main
from tokcore.cli.gpu_check import sanitizer
from tokcore.cli.gpu_check import stage as stage_module
from tokcore.cli.gpu_check.__main__ import main
from tokcore.cli.gpu_check.bench import result_lines, rows_of
from tokcore.cli.gpu_check.contracts import attempt, overwrite, same_bits, with_options_of
from tokcore.cli.gpu_check.machine import describe_machine
from tokcore.cli.gpu_check.stage import (
    FAILED,
    FIRST,
    NOT_RUN,
    PASSED,
    Context,
    Stage,
    run_stages,
    share_out,
    spread,
)
from tokcore.testing import cuda
from tokcore.testing.backend import find_backend
from tokcore.testing.worker import TABLES, load_tables


def stages_of(out: Path) -> dict[str, dict[str, Any]]:
    document = json.loads((out / "gpu-check.json").read_text())
    return {stage["name"]: stage for stage in document["stages"]}


def test_a_rehearsal_runs_every_stage_and_says_what_it_could_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["--device", "cpu", "--tables", "toy:sound", "--out", str(tmp_path), "--minutes", "3"])
    printed = capsys.readouterr().out
    assert status == 2, printed  # nothing failed, but not everything could run
    text = (tmp_path / "gpu-check.txt").read_text()
    for line in (
        "== machine: passed",
        "== verification: passed",
        "toy: 2 of 2 cases passed; largest error",
        "== contracts: not run",
        "toy repeats: 2 of 2 cases",
        "toy replays from a graph: 0 of 2 cases (not run: needs a GPU)",
        "toy compiles: 2 of 2 cases",
        "== sanitizer: not run",
        "== bench: passed",
        "toy · forward · small,fp32",
        "missing absent: not installed",
        "gpu-check: machine passed, verification passed, contracts not run, sanitizer not run, bench passed",
    ):
        assert line in text
        assert line in printed
    stages = stages_of(tmp_path)
    assert list(stages) == ["machine", "verification", "contracts", "sanitizer", "bench"]
    assert len(stages["verification"]["data"]["results"]) == 2
    (document,) = stages["bench"]["data"]["documents"].values()
    assert [result["measure"] for result in document["results"]] == ["forward", "forward+backward"]
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"gpu-check.json", "gpu-check.txt", "toy.csv", "toy-light.png", "toy-dark.png"}


def test_trouble_fails_the_check_and_is_told(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--tables", "toy:tables", "--out", str(tmp_path), "--minutes", "3"]
    assert main([*options, "--stage", "verification", "--stage", "contracts"]) == 1
    stages = stages_of(tmp_path)
    assert [stage["status"] for stage in stages.values()] == [PASSED, FAILED, FAILED]
    verification, contracts = ("\n".join(stages[name]["lines"]) for name in ("verification", "contracts"))
    assert "troubled: 2 of 5 cases passed" in verification
    assert "failed troubled wrong: product error" in verification
    assert "failed troubled crashes: the process ended: exit status 3" in verification
    assert "failed troubled repeats raises: ValueError: tokcore.toy: argument 'e'" in contracts
    assert "troubled: the process ended: exit status 3" in contracts


def test_without_a_gpu_nothing_else_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "missing", lambda: "torch sees no GPU")
    assert main(["--out", str(tmp_path)]) == 1
    text = (tmp_path / "gpu-check.txt").read_text()
    assert "tokcore cannot run on a GPU here: torch sees no GPU" in text
    assert text.count("the stage machine did not pass") == 4
    assert describe_machine(Context("cpu", "toy:sound"), 10.0).status == PASSED


def test_a_process_that_ends_while_timing_costs_its_own_row_alone(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--tables", "toy:crashing", "--out", str(tmp_path), "--minutes", "2"]
    assert main([*options, "--stage", "bench"]) == 1
    stage = stages_of(tmp_path)["bench"]
    assert "crashing, row 1 of 2: the process ended: exit status 3: no error output" in stage["lines"]
    timed = {op: [row["case"] for row in found["results"]] for op, found in stage["data"]["documents"].items()}
    assert timed == {"crashing": ["good"], "toy": ["small,fp32", "small,fp32"]}


def test_what_is_known_so_far_is_in_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def write(out: Path, stages: Sequence[Stage], *, plots: bool = True) -> list[str]:
        seen.append({"stages": [stage.name for stage in stages], "lines": len(stages[-1].lines), "plots": plots})
        return []

    monkeypatch.setattr(gpu_check_main, "write_files", write)
    words = ["--device", "cpu", "--tables", "toy:crashing", "--op", "toy", "--out", str(tmp_path), "--minutes", "2"]
    assert main([*words, "--stage", "verification", "--stage", "bench"]) == 0
    partial = [item["stages"][-1] for item in seen if not item["plots"]]
    assert partial == ["verification", "bench", "bench", "bench"]  # an op; two rows, an op
    assert [item["lines"] > 0 for item in seen] == [True] * len(seen)


def test_an_op_that_does_not_run_there_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--device", "cpu", "--tables", "toy:sound", "--op", "tea", "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "--op: no op called tea runs on cpu" in capsys.readouterr().err


def test_every_op_is_checked_the_most_important_first() -> None:
    ops = list(Context("cpu", TABLES).load())
    assert set(ops) == set(load_tables())
    assert ops[: len(FIRST)] == list(FIRST)
    on_gpu = Context("cuda", TABLES).load()
    assert list(on_gpu) == [op for op in ops if op in on_gpu]
    idle = [op for op, table in on_gpu.items() if not rows_of(table, find_backend("cuda"))]
    assert idle == [], "every op that runs on a GPU is timed there"
    assert {"linear_cross_entropy", "block_sparse_attention", "decode_attention", "verify_tree_sample"} <= set(on_gpu)


def test_time_is_shared_by_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(stage_module.time, "monotonic", lambda: now[0])
    given = {}
    for name, seconds in share_out({"a": 1.0, "b": 2.0, "c": 1.0}, 40.0):
        given[name] = seconds
        now[0] += {"a": 4.0, "b": 36.0, "c": 1.0}[name]  # a leaves some over, b takes all that there is
    assert given == {"a": 10.0, "b": 24.0, "c": 0.0}


def test_stages_share_the_time_and_outlive_each_other() -> None:
    given: list[float] = []

    def fine(context: Context, seconds: float) -> Stage:
        given.append(seconds)
        return Stage("fine", PASSED)

    def broken(context: Context, seconds: float) -> Stage:
        raise RuntimeError("no such luck")

    seen: list[str] = []
    plan = [("first", fine, 1.0), ("second", broken, 1.0), ("third", fine, 2.0)]
    stages = run_stages(plan, Context("cpu", ""), 1.0, lambda stage: seen.append(stage.status))
    assert [stage.status for stage in stages] == seen == [PASSED, FAILED, PASSED]
    assert stages[1].lines == ["RuntimeError: no such luck"]
    assert given == [pytest.approx(15.0, abs=1.0), pytest.approx(60.0, abs=1.0)]
    late = run_stages(plan, Context("cpu", ""), 0.0, lambda _: None)
    assert [stage.status for stage in late] == [NOT_RUN] * 3
    assert late[0].lines == ["no time was left"]
    assert late[2].lines == ["the stage first did not pass"]


def test_cases_are_spread() -> None:
    names = [str(number) for number in range(10)]
    assert spread(names, 20) == names
    assert spread(names, 4) == ["0", "3", "6", "9"]
    assert spread(names, 1) == ["0"]


def test_bits_are_compared_not_values() -> None:
    zero, nan = torch.zeros(2), torch.full((2,), float("nan"))
    assert same_bits({"a": nan, "b": torch.tensor(1)}, {"a": nan.clone(), "b": torch.tensor(1)}) is None
    assert same_bits({"a": zero}, {"a": -zero}) == "a differs"
    assert same_bits({"a": zero}, {"a": zero.double()}) == "a is (2,) torch.float64, was (2,) torch.float32"


def test_inputs_are_overwritten_in_place() -> None:
    inputs = {"e": torch.zeros(2).requires_grad_(), "shift": 1, "upstream": {"loss": torch.zeros(1)}}
    places = inputs["e"].data_ptr(), inputs["upstream"]["loss"].data_ptr()
    overwrite(inputs, {"e": torch.ones(2).requires_grad_(), "shift": 1, "upstream": {"loss": torch.ones(1)}})
    assert (inputs["e"].data_ptr(), inputs["upstream"]["loss"].data_ptr()) == places
    assert inputs["e"].tolist() == [1.0, 1.0]
    assert inputs["upstream"]["loss"].tolist() == [1.0]


def test_masks_and_tuples_are_overwritten_and_options_kept() -> None:
    def inputs(seed: int) -> dict[str, Any]:
        x = torch.full((2,), float(seed))
        kept = torch.tensor([[True, seed > 0]])
        return {"mask": tokcore.BlockMask.from_dense(kept, shape=(64, 128)), "rope": (x, x + 1), "codes": [seed]}

    old, new = inputs(0), inputs(1)
    overwrite(old, new)
    assert old["mask"].to_dense().all()
    assert [part.tolist() for part in old["rope"]] == [[1.0, 1.0], [2.0, 2.0]]
    assert with_options_of(old, new)["codes"] == [0]
    assert with_options_of(old, new)["rope"] is new["rope"]


def test_calls_that_differ_are_caught() -> None:
    offsets = iter([0.0, 1.0])
    table = dataclasses.replace(toy.TABLE, run=lambda inputs: {"product": torch.zeros(1) + next(offsets)})
    assert attempt("repeats", table, table.cases[0], "cpu", 0) == "product differs"
    assert attempt("repeats", toy.TABLE, toy.TABLE.cases[0], "cpu", 0) is None


@pytest.mark.parametrize(
    ("script", "status", "cases"),
    [
        ('printf \'{"op": 1}\\n{"op": 2}\\n\'; exit 0', PASSED, 2),
        ("printf '{\"op\": 1}\\n'; exit 86", FAILED, 1),
        ("echo 'device not supported' >&2; exit 1", NOT_RUN, 0),
        ("printf '{\"op\": 1}\\n'; exec sleep 60", NOT_RUN, 1),
    ],
)
def test_a_sanitizer_is_judged_by_its_exit_status(
    tmp_path: Path, script: str, status: str, cases: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    usage = '[ "$1" = --help ] && { echo "  --kernel-name arg"; exit 0; }'
    tool.write_text(f'#!/bin/sh\n{usage}\necho "report of $*" > "$6"\n{script}\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert sanitizer.find_sanitizer() == str(tool)
    got, done, report = sanitizer._run_tool(str(tool), "memcheck", "{}", 3.0)
    assert (got, done) == (status, cases)
    assert "report of --tool memcheck --error-exitcode 86 --log-file" in report
    assert "--kernel-name kns=tokcore" in report
    assert "device not supported" in report or "supported" not in script


def test_after_a_process_that_ends_the_sanitizer_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    answers = iter([(NOT_RUN, 2, "crashed"), (FAILED, 1, "an access"), (PASSED, 1, "")])

    def run(tool: str, name: str, request: str, seconds: float) -> tuple[str, int, str]:
        asked.append(list(json.loads(request)["work"]))
        return next(answers)

    monkeypatch.setattr(sanitizer, "_run_tool", run)
    work = {"a": ["1", "2"], "b": ["3"], "c": ["4"], "d": ["5"], "e": ["6"]}
    status, done, report = sanitizer._run_on_all("tool", "memcheck", Context("cuda", ""), work, 60.0)
    assert asked == [["a", "b", "c", "d", "e"], ["c", "d", "e"], ["e"]]
    assert (status, done) == (FAILED, 4)
    assert report == "crashed\nb was not finished\nan access\nd was not finished"


def test_the_bench_is_told_in_plain_lines() -> None:
    row = {
        "variant": "own", "peer": False, "median_seconds": 0.0125, "lower_quartile_seconds": 0.012,
        "upper_quartile_seconds": 0.013, "rounds": 100, "timed": "events", "flops_per_second": 7.5e14,
        "peak_share": 0.95, "peak": {"kind": "matmul_bf16", "rate": 7.9e14}, "speedup": 1.5,
        "max_error": {"output": "lse", "value": 1e-6},
    }  # fmt: skip
    result = {
        "case": "big", "measure": "forward", "baseline": "peer", "rows": [row],
        "missing": [{"variant": "absent", "reason": "not installed"}],
        "goals": [{"variant": "own", "seconds": 0.0129, "verdict": "pass"}],
    }  # fmt: skip
    title, line, missing, goal = result_lines("toy", result)
    assert title == "toy · forward · big"
    for text in (
        "12.500 ms",
        "IQR 1.000, 100 rounds, events",
        "750.0 TFLOP/s",
        "95% of matmul_bf16",
        "1.50x peer",
        "lse",
    ):
        assert text in line
    assert missing == "  missing absent: not installed"
    assert goal == "  goal pass: variant own, seconds 0.0129"
