"""The stage, and its worker, that time every op on the GPU beside its peers."""

from __future__ import annotations

import time
from typing import Any

import torch

from tokcore.cli import environment
from tokcore.cli.bench.run import Settings, run_case
from tokcore.cli.gpu_check.stage import FAILED, GRACE_SECONDS, NOT_RUN, PASSED, Context, Stage
from tokcore.testing.backend import find_backend
from tokcore.testing.peaks import Peaks
from tokcore.testing.worker import WorkerError, answer, load_tables, read_request, run_worker

_SECONDS = 1.0  # of timing, at least, for a case and measure


def time_ops(context: Context, seconds: float) -> Stage:
    """Passes when every case was timed and every goal that could be judged is reached."""
    end = time.monotonic() + seconds
    lines: list[str] = []
    documents: dict[str, dict[str, Any]] = {}
    failed = short = False
    complete = True
    tables = context.load()
    for number, op in enumerate(tables):
        share = (end - time.monotonic()) / (len(tables) - number)
        request = {"tables": context.tables, "op": op, "device": context.device, "seed": context.seed, "seconds": share}
        document = documents[op] = {
            "schema": 1,
            "kind": "tokcore bench",
            "op": op,
            "command": f"python -m tokcore.cli.gpu_check (tokcore bench --op {op} --backend {context.device})",
            "environment": environment.describe(),
            "settings": {"seconds": _SECONDS, "threads": torch.get_num_threads(), "seed": context.seed},
            "peaks": {},
            "results": [],
        }
        try:
            for message in run_worker("tokcore.cli.gpu_check.bench", request, seconds=share + GRACE_SECONDS):
                if "skipped" in message:
                    complete = False
                    lines.append(f"{op} {message['skipped']}: the time was over")
                    continue
                document["results"].append(message["result"])
                document["peaks"] = message["peaks"]
                lines += result_lines(op, message["result"])
                failed |= any(missing["failed"] for missing in message["result"]["missing"])
                short |= any(goal["verdict"] == "fall short" for goal in message["result"]["goals"])
        except WorkerError as error:
            failed = True
            lines.append(f"{op}: the process ended: {error}")
        lines += [f"{op} peaks: " + ", ".join(f"{kind} {rate:.4g}" for kind, rate in document["peaks"].items())]
    status = FAILED if failed or short else PASSED if complete else NOT_RUN
    return Stage("bench", status, lines, {"documents": documents})


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
    variants = [variant for variant in table.variants if backend.name in variant.backends]
    measures = dict.fromkeys(variant.measure for variant in variants)
    cases = [case for case in table.cases if backend.case_tag in case.tags]
    pairs = [(case, measure) for case in cases for measure in measures]
    peaks = Peaks()
    for number, (case, measure) in enumerate(pairs):
        left = end - time.monotonic()
        if left <= 0.0:
            answer(skipped=f"{measure} {case.name}")
            continue
        # Half of the share: inputs, references and the compilation of peers take the other half.
        limit = 0.5 * left / (len(pairs) - number)
        settings = Settings(
            _SECONDS, torch.get_num_threads(), request["seed"], True, False, request["tables"], backend, limit
        )
        chosen = [variant for variant in variants if variant.measure == measure]
        answer(result=run_case(table, case, measure, chosen, settings, peaks).to_json(), peaks=peaks.rates)


if __name__ == "__main__":
    _work()
