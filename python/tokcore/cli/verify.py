"""``tokcore verify``: every case of an op against its fp64 reference, at every instruction-set level here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokcore import _library
from tokcore.cli import arguments, environment
from tokcore.cli.bench.results import finite
from tokcore.cli.console import Steps, output, write_text
from tokcore.testing.worker import WorkerError, run_worker

Result = dict[str, Any]  # one case at one level


def verify(
    op: Annotated[str | None, typer.Option(help="Which op; all by default.")] = None,
    case: Annotated[list[str] | None, typer.Option(help="Case name or shell pattern; repeatable; needs --op.")] = None,
    isa: Annotated[str, typer.Option(help="An instruction-set level, or 'all' that this machine has.")] = "all",
    seed: Annotated[int, typer.Option(help="Seed of the inputs.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every comparison to this file.")] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the cases; run nothing.")] = False,
) -> None:
    """Check the kernels on this machine against the fp64 reference."""
    if case and op is None:
        arguments.fail("--case needs --op")
    tables = [arguments.find_table(op)] if op is not None else list(arguments.all_tables().values())
    work = {table.op: [case.name for case in arguments.find_cases(table, case or [], "verify")] for table in tables}
    if show_list:
        for name, cases in work.items():
            typer.echo("\n".join(f"{name} {case_name}" for case_name in cases))
        return
    levels = list(_library.cpu_isa_levels())
    if isa != "all":
        levels = arguments.choose("instruction-set level of this machine", [isa], levels)
    arguments.check_writable(json_file)
    if not any(work.values()):
        arguments.fail("there is no case to verify", code=1)
    described = environment.describe()
    out = output()
    out.print(escape(environment.headline(described)), soft_wrap=True)
    results: list[Result] = []
    with Steps(out, len(levels) * sum(len(names) for names in work.values())) as steps:
        for name, cases in work.items():
            for level in levels:
                steps.begin(f"{name} at {level}: {len(cases)} cases")
                results += verify_at(name, cases, level, seed, steps.end)
    out.print(_summary(results))
    failures = [result for result in results if not result["ok"]]
    _print_failures(out, failures)
    if json_file is not None:
        document = {"schema": 1, "kind": "tokcore verify", "environment": described, "seed": seed, "results": results}
        write_text(json_file, json.dumps(_without_infinities(document), indent=1) + "\n")
    if failures:
        arguments.fail(f"{len(failures)} of {len(results)} verifications failed", code=1)


def verify_at(op: str, cases: Sequence[str], level: str, seed: int, on_case: Callable[[], None]) -> list[Result]:
    """Verifies ``cases`` in a process held to ``level``; after a crash the cases behind the crashing one go on."""
    results: list[Result] = []

    def add(result: Result) -> None:
        results.append({"op": op, "isa": level, **result})
        on_case()

    while len(results) < len(cases):
        remaining = list(cases[len(results) :])
        request = {"tables": arguments.TABLE_SOURCE, "op": op, "cases": remaining, "seed": seed}
        ended = "early"
        try:
            for message in run_worker("tokcore.cli.verify_worker", request, {"TOKCORE_MAX_ISA": level}):
                if "isa" not in message:
                    add(message)
                elif message["isa"] != level:
                    failure = f"the library runs at {message['isa']} although {level} was asked for"
                    for name in remaining:
                        add({"case": name, "ok": False, "comparisons": [], "failure": failure})
                    break
        except WorkerError as error:
            ended = str(error)
        if len(results) < len(cases):
            failure = f"the process ended: {ended}"
            add({"case": cases[len(results)], "ok": False, "comparisons": [], "failure": failure})
    return results


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_infinities(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_infinities(item) for item in value]
    return finite(value) if isinstance(value, float) else value


def _worst(result: Result) -> float:
    """The largest error of a case as a fraction of what is allowed; infinite for one that raised."""
    if not result["comparisons"]:
        return float("inf")
    return max(
        item["error"] / item["allowed"] if item["allowed"] > 0 else (0.0 if item["ok"] else float("inf"))
        for item in result["comparisons"]
    )


def _summary(results: Sequence[Result]) -> Table:
    table = Table("op", "level", "cases", "passed", "largest error / allowed", "in", title="tokcore verify")
    for key in dict.fromkeys((result["op"], result["isa"]) for result in results):
        group = [result for result in results if (result["op"], result["isa"]) == key]
        passed = sum(result["ok"] for result in group)
        worst = max(group, key=_worst)
        style = "green" if passed == len(group) else "bold red"
        table.add_row(
            *key,
            str(len(group)),
            f"[{style}]{passed}[/]",
            f"{_worst(worst):.2f}",
            escape(worst["case"]),
            end_section=True,
        )
    return table


def _print_failures(out: Console, failures: Sequence[Result]) -> None:
    for result in failures:
        causes = [
            f"{item['output']} error {item['error']:.3g}, allowed {item['allowed']:.3g}"
            for item in result["comparisons"]
            if not item["ok"]
        ]
        reason = result.get("failure") or "; ".join(causes) or "no output was compared"
        out.print(f"[red]failed[/] {escape(result['case'])} at {result['isa']}: {escape(reason)}", soft_wrap=True)
        command = ["verify", "--op", result["op"], "--isa", result["isa"], "--case", result["case"]]
        out.print(f"[dim]reproduce: {escape(environment.reproduction(command))}[/]", soft_wrap=True)
