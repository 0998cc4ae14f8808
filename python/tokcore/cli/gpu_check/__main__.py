"""Runs the stages and writes the report; exit status 0 when every stage passed, 1 when one failed, 2 when one did not
run to its end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tokcore.cli.gpu_check.bench import time_ops
from tokcore.cli.gpu_check.contracts import check_contracts
from tokcore.cli.gpu_check.machine import describe_machine
from tokcore.cli.gpu_check.report import stage_text, summary_text, write_files
from tokcore.cli.gpu_check.sanitizer import run_sanitizer
from tokcore.cli.gpu_check.stage import FAILED, PASSED, Context, Stage, Work, run_stages
from tokcore.cli.gpu_check.verification import verify_cases
from tokcore.testing.worker import TABLES

PLAN: list[tuple[str, Work, float]] = [  # name, work, share of the time
    ("machine", describe_machine, 0.3),
    ("verification", verify_cases, 2.0),
    ("contracts", check_contracts, 2.5),
    ("sanitizer", run_sanitizer, 1.5),
    ("bench", time_ops, 4.5),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tokcore.cli.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=19.0, help="time for all stages together")
    parser.add_argument("--op", action="append", default=[], help="only these ops; repeatable")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses without a GPU")
    parser.add_argument("--stage", action="append", choices=[name for name, _, _ in PLAN], help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables", default=TABLES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = {"machine", *(options.stage or [name for name, _, _ in PLAN])}
    done: list[Stage] = []

    def on_stage(stage: Stage) -> None:
        print(stage_text(stage), flush=True)
        done.append(stage)
        problems.extend(problem for problem in write_files(options.out, done) if problem not in problems)

    problems: list[str] = []

    def on_partial(stage: Stage) -> None:
        write_files(options.out, [*done, stage], plots=False)

    context = Context(options.device, options.tables, options.seed, tuple(options.op), on_partial)
    unknown = set(options.op) - set(context.load())
    if unknown:
        parser.error(f"--op: no op called {', '.join(sorted(unknown))} runs on {options.device}")
    stages = run_stages([step for step in PLAN if step[0] in wanted], context, options.minutes, on_stage)
    for problem in problems:
        print(problem)
    print(summary_text(stages))
    statuses = {stage.status for stage in stages}
    return 1 if FAILED in statuses else 0 if statuses == {PASSED} else 2


if __name__ == "__main__":
    sys.exit(main())
