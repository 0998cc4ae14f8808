"""The stage, and its worker, that time every op on the GPU beside its peers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from tokcore.cli import environment
from tokcore.cli.bench.run import Settings, run_case
from tokcore.cli.gpu_check.stage import FAILED, GRACE_SECONDS, NOT_RUN, PASSED, Context, Stage, share_out
from tokcore.testing.backend import Backend, find_backend
from tokcore.testing.peaks import Peaks
from tokcore.testing.table import Case, OpTable, Variant
from tokcore.testing.verification import gpu_works
from tokcore.testing.worker import WorkerError, answer, load_tables, read_request, run_worker

_SECONDS = 1.0  # of timing, at least, for a case and measure
_START = 2.0  # what starting a process takes, in cases


@dataclass
class _Findings:
    """What the ops timed so far gave."""

    lines: list[str] = field(default_factory=list)
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: bool = False
    short: bool = False
    complete: bool = True

    def stage(self, ended: bool) -> Stage:
        """As a stage; one that goes on has not run."""
        status = FAILED if self.failed or self.short else PASSED if self.complete and ended else NOT_RUN
        return Stage("bench", status, self.lines, {"documents": self.documents})


def time_ops(context: Context, seconds: float) -> Stage:
    """Passes when every case was timed and every goal that could be judged is reached."""
    found = _Findings()
    tables = context.load()
    backend = find_backend(context.device)
    work = {op: rows_of(table, backend) for op, table in tables.items()}
    timed = {op: _START + len(rows) for op, rows in work.items() if rows}
    for op, share in share_out(timed, seconds):
        _time_op(context, op, len(work[op]), share, found)
        context.on_partial(found.stage(ended=False))
    return found.stage(ended=True)


def rows_of(table: OpTable, backend: Backend) -> list[tuple[Case, str, list[Variant]]]:
    """What is timed of an op, in order: cases tagged for the backend, each measure, the variants meant for them."""
    variants = [variant for variant in table.variants if backend.name in variant.backends]
    measures = dict.fromkeys(variant.measure for variant in variants)
    rows = []
    for case in table.cases:
        for measure in measures if backend.case_tag in case.tags else ():
            chosen = [variant for variant in variants if variant.measure == measure and variant.applies(case)]
            if any(not variant.peer for variant in chosen):
                rows.append((case, measure, chosen))
    return rows


def _time_op(context: Context, op: str, count: int, seconds: float, found: _Findings) -> None:
    """Every row in a process of the op's own; one that ends it costs its own figures, another process does the rest."""
    end = time.monotonic() + seconds
    document = found.documents[op] = {
        "schema": 1,
        "kind": "tokcore bench",
        "op": op,
        "command": f"python -m tokcore.cli.gpu_check (tokcore bench --op {op} --backend {context.device})",
        "environment": environment.describe(),
        "settings": {"seconds": _SECONDS, "threads": torch.get_num_threads(), "seed": context.seed},
        "peaks": {},
        "results": [],
    }
    done = 0
    while done < count:
        left = end - time.monotonic()
        if left <= 0.0:
            found.complete = False
            found.lines.append(f"{op}: the time was over after {done} of {count} rows")
            break
        request = {"tables": context.tables, "op": op, "device": context.device, "seed": context.seed, "first": done}
        try:
            for message in run_worker(
                "tokcore.cli.gpu_check.bench", {**request, "seconds": left}, seconds=left + GRACE_SECONDS
            ):
                if "ends" in message:
                    break  # the error was of the GPU, which this process cannot use any more
                done += 1
                if "skipped" in message:
                    found.complete = False
                    found.lines.append(f"{op} {message['skipped']}: the time was over")
                    continue
                _add(op, document, message, found)
                context.on_partial(found.stage(ended=False))
        except WorkerError as error:
            found.failed = True
            found.lines.append(f"{op}, row {done + 1} of {count}: the process ended: {error}")
            done += 1
    rates = ", ".join(f"{kind} {rate:.4g}" for kind, rate in document["peaks"].items())
    found.lines.append(f"{op} peaks: {rates or 'not measured'}")


def _add(op: str, document: dict[str, Any], message: dict[str, Any], found: _Findings) -> None:
    result = message["result"]
    document["results"].append(result)
    document["peaks"] = message["peaks"]
    found.lines += result_lines(op, result)
    found.failed |= any(missing["failed"] for missing in result["missing"])
    found.short |= any(goal["verdict"] == "fall short" for goal in result["goals"])


def result_lines(op: str, result: dict[str, Any]) -> list[str]:
    """A plain table of one case and measure."""
    lines = [f"{op} · {result['measure']} · {result['case']}"]
    for row in result["rows"]:
        share = "" if row["peak_share"] is None else f"  {row['peak_share']:.0%} of {row['peak']['kind']}"
        ratio = "" if row["speedup"] is None else f"  {row['speedup']:.2f}x {result['baseline']}"
        rate = "" if row["flops_per_second"] is None else f"  {row['flops_per_second'] / 1e12:.1f} TFLOP/s"
        error = (
            "" if row["max_error"] is None else f"  error {row['max_error']['value']} ({row['max_error']['output']})"
        )
        spread = (row["upper_quartile_seconds"] - row["lower_quartile_seconds"]) * 1e3
        time_text = f"{row['median_seconds'] * 1e3:10.3f} ms (IQR {spread:.3f}, {row['rounds']} rounds, {row['timed']})"
        lines.append(f"  {row['variant']:40s}{time_text}{rate}{share}{ratio}{error}")
    lines += [f"  missing {item['variant']}: {item['reason']}" for item in result["missing"]]
    lines += [f"  goal {_goal_text(goal)}" for goal in result["goals"]]
    return lines


def _goal_text(goal: dict[str, Any]) -> str:
    fields = ", ".join(f"{name} {value}" for name, value in goal.items() if value is not None and name != "verdict")
    return f"{goal['verdict']}: {fields}"


def _work() -> None:
    request = read_request()
    table = load_tables(request["tables"])[request["op"]]
    backend = find_backend(request["device"])
    end = time.monotonic() + request["seconds"]
    rows = rows_of(table, backend)[request["first"] :]
    peaks = Peaks()
    for number, (case, measure, chosen) in enumerate(rows):
        left = end - time.monotonic()
        if left <= 0.0:
            answer(skipped=f"{measure} {case.name}")
            continue
        # Half of the share: inputs, references and the compilation of peers take the other half.
        limit = 0.5 * left / (len(rows) - number)
        settings = Settings(
            _SECONDS, torch.get_num_threads(), request["seed"], True, False, request["tables"], backend, limit
        )
        answer(result=run_case(table, case, measure, chosen, settings, peaks).to_json(), peaks=peaks.rates)
        if backend.name == "cuda" and not gpu_works():
            answer(ends=True)
            return


if __name__ == "__main__":
    _work()
