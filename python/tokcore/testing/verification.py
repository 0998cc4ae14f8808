"""Cases of an op against its fp64 reference, in processes of their own: each instruction-set level needs one, and what
crashes one process leaves the cases behind it to the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tokcore import _library
from tokcore.testing.numerics import Comparison, compare
from tokcore.testing.table import Case, OpTable, Outputs
from tokcore.testing.worker import TABLES, WorkerError, answer, load_tables, read_request, run_worker

Result = dict[str, Any]  # one case at one place
CUDA = "cuda"  # the place that is not an instruction-set level of the CPU
_GRACE_SECONDS = 20.0  # that a worker may take beyond its time before it is stopped: it may be hanging


def verify_at(
    op: str,
    cases: Sequence[str],
    place: str,
    seed: int,
    on_case: Callable[[], None] = lambda: None,
    tables: str = TABLES,
    seconds: float | None = None,
) -> list[Result]:
    """Verifies ``cases`` in a process held to ``place``, an instruction-set level or ``"cuda"``; after a crash the
    cases behind the crashing one go on. After ``seconds`` the rest is left out and not in the results."""
    results: list[Result] = []

    def add(result: Result) -> None:
        results.append({"op": op, "isa": place, **result})
        on_case()

    environment = {} if place == CUDA else {"TOKCORE_MAX_ISA": place}
    end = None if seconds is None else time.monotonic() + seconds
    while len(results) < len(cases):
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0.0:
            break
        remaining = list(cases[len(results) :])
        request = {"tables": tables, "op": op, "cases": remaining, "seed": seed, "place": place, "seconds": left}
        most = None if left is None else left + _GRACE_SECONDS
        before, ended, expects_end = len(results), "early", False
        try:
            for message in run_worker("tokcore.testing.verification", request, environment, most):
                if "place" in message:
                    if message["place"] != place:
                        failure = f"the library runs at {message['place']} although {place} was asked for"
                        for name in remaining:
                            add({"case": name, "ok": False, "comparisons": [], "failure": failure})
                        break
                elif "out_of_time" in message:
                    return results
                else:
                    expects_end = message.pop("ends", False)
                    add(message)
        except WorkerError as error:
            ended = str(error)
        if len(results) < len(cases) and not (expects_end and len(results) > before):
            failure = f"the process ended: {ended}"
            add({"case": cases[len(results)], "ok": False, "comparisons": [], "failure": failure})
    return results


def verify_case(table: OpTable, case: Case, device: str, seed: int) -> Result:
    """Compares tokcore with the fp64 reference; the PyTorch composition in the same dtype sets the tolerance."""
    comparisons = hold_to_rule(table, case, seed, table.run(table.make_inputs(case, device, seed)))
    return {
        "case": case.name,
        "ok": bool(comparisons) and all(comparison.ok for comparison in comparisons),
        "comparisons": [
            {
                "output": comparison.name,
                "error": float(comparison.error),
                "allowed": float(comparison.allowed),
                "ok": bool(comparison.ok),
            }
            for comparison in comparisons
        ],
    }


def hold_to_rule(table: OpTable, case: Case, seed: int, outputs: Outputs) -> list[Comparison]:
    """``outputs`` beside reference and composition, both computed on the CPU from the same numbers wherever the op
    ran: they are the rule, not a part of what is on trial."""
    inputs = table.make_inputs(case, "cpu", seed)
    found = {name: output.cpu() for name, output in outputs.items()}
    return compare(found, table.composition(inputs), table.reference(inputs))


def worst_ratio(result: Result) -> float:
    """The largest error of a case as a fraction of what is allowed; infinite for one that raised."""
    if not result["comparisons"]:
        return float("inf")
    return max(
        item["error"] / item["allowed"] if item["allowed"] > 0 else (0.0 if item["ok"] else float("inf"))
        for item in result["comparisons"]
    )


def attempt(table: OpTable, case: Case, device: str, seed: int) -> Result:
    """:func:`verify_case`; whatever a case raises is its failure, not the end of the others. ``"ends"`` is in the
    result when the error was of the GPU: a process cannot use it after one."""
    try:
        return verify_case(table, case, device, seed)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        result: Result = {"case": case.name, "ok": False, "comparisons": [], "failure": failure}
        return {**result, "ends": True} if device == CUDA and not gpu_works() else result


def gpu_works() -> bool:
    """Whether this process can still use the GPU: after some errors it cannot."""
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device=CUDA).item()
    except RuntimeError:
        return False
    return True


def _work() -> None:
    request = read_request()
    table = load_tables(request["tables"])[request["op"]]
    device = CUDA if request["place"] == CUDA else "cpu"
    answer(place=CUDA if device == CUDA else _library.cpu_isa())
    out_of_time = _deadline(request["seconds"])
    for name in request["cases"]:
        if out_of_time():
            answer(out_of_time=True)
            return
        result = attempt(table, table.case(name), device, request["seed"])
        answer(**result)
        if result.get("ends"):
            return


def _deadline(seconds: float | None) -> Callable[[], bool]:
    end = None if seconds is None else time.monotonic() + seconds
    return lambda: end is not None and time.monotonic() > end


if __name__ == "__main__":
    _work()
