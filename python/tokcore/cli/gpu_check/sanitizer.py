"""The stage, and its worker, that run small cases under compute-sanitizer where it is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tokcore.cli.gpu_check.stage import FAILED, NOT_RUN, PASSED, Context, Stage, spread
from tokcore.testing.worker import answer, load_tables, read_request

TOOLS = ("memcheck", "racecheck")
_CASES = 6  # per op; a sanitized call takes up to a hundred times as long
_ERROR_EXIT = 86
_MOST_SHOWN = 40  # lines of a report


def find_sanitizer() -> str | None:
    """compute-sanitizer, on PATH or where the toolkit puts it."""
    places = [
        Path("/usr/local/cuda/bin/compute-sanitizer"),
        Path("/usr/local/cuda/compute-sanitizer/compute-sanitizer"),
    ]
    return shutil.which("compute-sanitizer") or next((str(place) for place in places if place.is_file()), None)


def run_sanitizer(context: Context, seconds: float) -> Stage:
    """Passes when both tools ran to the end on every chosen case and found nothing."""
    tool = find_sanitizer()
    if context.device != "cuda" or tool is None:
        return Stage("sanitizer", NOT_RUN, ["needs a GPU" if tool else "compute-sanitizer is not installed"])
    end = time.monotonic() + seconds
    work = {
        op: _small_cases([c.name for c in table.cases if "verify" in c.tags]) for op, table in context.load().items()
    }
    lines: list[str] = []
    data: dict[str, Any] = {"tool": tool}
    statuses = []
    for number, name in enumerate(TOOLS):
        budget = (end - time.monotonic()) / (len(TOOLS) - number)
        status, done, report = _run_on_all(tool, name, context, work, budget)
        wanted = sum(map(len, work.values()))
        lines.append(f"{name}: {status}, {done} of {wanted} cases")
        lines += [f"  {line}" for line in report.splitlines()[-_MOST_SHOWN:]] if status != PASSED else []
        data[name] = {"status": status, "cases": done, "wanted": wanted, "report": report}
        statuses.append(status)
        context.on_partial(Stage("sanitizer", NOT_RUN, lines, data))
    status = FAILED if FAILED in statuses else NOT_RUN if NOT_RUN in statuses else PASSED
    return Stage("sanitizer", status, lines, data)


def _run_on_all(
    tool: str, name: str, context: Context, work: dict[str, list[str]], seconds: float
) -> tuple[str, int, str]:
    """One process does all ops; after one that ends it early, without a finding, another does those behind it."""
    end = time.monotonic() + seconds
    left, done = dict(work), 0
    statuses: list[str] = []
    reports: list[str] = []
    while left:
        seconds = end - time.monotonic()
        if seconds <= 0.0:
            return FAILED if FAILED in statuses else NOT_RUN, done, "\n".join([*reports, "the time was over"])
        request = {"tables": context.tables, "work": left, "device": context.device, "seed": context.seed}
        status, cases, report = _run_tool(tool, name, json.dumps(request), seconds)
        statuses.append(status)
        reports += [report] if report else []
        done += cases
        for op in list(left):  # those that are done, and the one at which it ended
            count = len(left.pop(op))
            if cases < count:
                reports.append(f"{op} was not finished")
                break
            cases -= count
        else:
            break
    status = FAILED if FAILED in statuses else NOT_RUN if NOT_RUN in statuses else PASSED
    return status, done, "\n".join(reports)


def _small_cases(names: list[str]) -> list[str]:
    return spread(names, _CASES)


def _run_tool(tool: str, name: str, request: str, seconds: float) -> tuple[str, int, str]:
    """Status, number of cases that ran, and the tool's report."""
    usage = subprocess.run([tool, "--help"], capture_output=True, text=True, check=False).stdout
    ours = ["--kernel-name", "kns=tokcore"] if "--kernel-name" in usage else []  # torch's kernels are not on trial
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [tool, "--tool", name, "--error-exitcode", str(_ERROR_EXIT), "--log-file", str(log), *ours]
        command += [sys.executable, "-m", "tokcore.cli.gpu_check.sanitizer"]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        # torch's allocator would hand out parts of one block: an access past the end of one is then inside the next.
        variables["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
        try:
            done = subprocess.run(
                command, input=request, capture_output=True, text=True, check=False, timeout=seconds, env=variables
            )
            output, errors, code = done.stdout, done.stderr, done.returncode
        except subprocess.TimeoutExpired as expired:
            output, errors, code = _text(expired.stdout), "the time was over", None
        report = log.read_text() if log.exists() else ""
    cases = sum(line.startswith("{") for line in output.splitlines())
    if code == 0:
        return PASSED, cases, report
    if code == _ERROR_EXIT:
        return FAILED, cases, report
    return NOT_RUN, cases, f"{report}\n{errors}".strip()


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _work() -> None:
    request = read_request()
    tables = load_tables(request["tables"])
    for op, cases in request["work"].items():
        for case in cases:
            table = tables[op]
            table.run(table.make_inputs(table.case(case), request["device"], request["seed"]))
            answer(op=op, case=case)


if __name__ == "__main__":
    _work()
