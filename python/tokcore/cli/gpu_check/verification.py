"""The stage that compares every verified case of every op with its fp64 reference."""

from __future__ import annotations

from tokcore import _library
from tokcore.cli.gpu_check.stage import FAILED, NOT_RUN, PASSED, Context, Stage, share_out
from tokcore.testing.verification import CUDA, Result, verify_at, worst_ratio

_START = 100.0  # what starting a process takes, in cases
_MOST_SHOWN = 20  # failures that are printed; the JSON file has them all


def verify_cases(context: Context, seconds: float) -> Stage:
    """Passes when every case was run and none failed."""
    place = CUDA if context.device == "cuda" else _library.cpu_isa()
    lines: list[str] = []
    results: list[Result] = []
    names = {op: [case.name for case in table.cases if "verify" in case.tags] for op, table in context.load().items()}
    wanted = sum(map(len, names.values()))
    for op, share in share_out({op: _START + len(cases) for op, cases in names.items()}, seconds):
        found = verify_at(op, names[op], place, context.seed, tables=context.tables, seconds=share) if share > 0 else []
        results += found
        lines.append(_summary(op, found, len(names[op])))
        context.on_partial(
            Stage("verification", NOT_RUN, lines, {"place": place, "wanted": wanted, "results": results})
        )
    failures = [result for result in results if not result["ok"]]
    lines += [_failure(result) for result in failures[:_MOST_SHOWN]]
    lines += [f"and {len(failures) - _MOST_SHOWN} more failures"] if len(failures) > _MOST_SHOWN else []
    if len(results) < wanted:
        lines.append(f"the time was over after {len(results)} of {wanted} cases")
    status = FAILED if failures else PASSED if len(results) == wanted else NOT_RUN
    return Stage("verification", status, lines, {"place": place, "wanted": wanted, "results": results})


def _summary(op: str, results: list[Result], wanted: int) -> str:
    passed = sum(result["ok"] for result in results)
    text = f"{op}: {passed} of {wanted} cases passed"
    if not results:
        return text
    worst = max(results, key=worst_ratio)
    return f"{text}; largest error {worst_ratio(worst):.2f} of what is allowed, in {worst['case']}"


def _failure(result: Result) -> str:
    causes = [
        f"{item['output']} error {item['error']:.3g}, allowed {item['allowed']:.3g}"
        for item in result["comparisons"]
        if not item["ok"]
    ]
    return f"failed {result['op']} {result['case']}: {result.get('failure') or '; '.join(causes)}"
