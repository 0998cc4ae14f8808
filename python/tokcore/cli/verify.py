"""``tokcore verify``: every case of an op against its fp64 reference, at every instruction-set level and GPU here."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
from tokcore.testing import cuda
from tokcore.testing.verification import CUDA, Result, verify_at, worst_ratio


def verify(
    op: Annotated[str | None, typer.Option(help="Which op; all by default.")] = None,
    case: Annotated[list[str] | None, typer.Option(help="Case name or shell pattern; repeatable; needs --op.")] = None,
    backend: Annotated[str | None, typer.Option(help="cpu, cuda or both; by default all that can run here.")] = None,
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
    places = list(_library.cpu_isa_levels())
    if isa != "all":
        places = arguments.choose("instruction-set level of this machine", [isa], places)
    if backend is not None:
        names = [chosen.name for chosen in arguments.find_backends(backend)]
        places = [*(places if "cpu" in names else []), *([CUDA] if CUDA in names else [])]
    elif isa == "all" and cuda.missing() is None:
        places.append(CUDA)
    arguments.check_writable(json_file)
    if not any(work.values()):
        arguments.fail("there is no case to verify", code=1)
    described = environment.describe()
    out = output()
    out.print(escape(environment.headline(described)), soft_wrap=True)
    results: list[Result] = []
    with Steps(out, len(places) * sum(len(names) for names in work.values())) as steps:
        for name, cases in work.items():
            for place in places:
                if place == CUDA and not arguments.find_table(name).runs_on(CUDA):
                    out.print(f"[yellow]{escape(name)} has no CUDA kernel[/]", soft_wrap=True)
                    continue
                steps.begin(f"{name} at {place}: {len(cases)} cases")
                results += verify_at(name, cases, place, seed, steps.end, arguments.TABLE_SOURCE)
    out.print(_summary(results))
    failures = [result for result in results if not result["ok"]]
    _print_failures(out, failures)
    if json_file is not None:
        document = {"schema": 1, "kind": "tokcore verify", "environment": described, "seed": seed, "results": results}
        write_text(json_file, json.dumps(_without_infinities(document), indent=1) + "\n")
    if failures:
        arguments.fail(f"{len(failures)} of {len(results)} verifications failed", code=1)


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_infinities(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_infinities(item) for item in value]
    return finite(value) if isinstance(value, float) else value


def _summary(results: Sequence[Result]) -> Table:
    table = Table("op", "level", "cases", "passed", "largest error / allowed", "in", title="tokcore verify")
    for key in dict.fromkeys((result["op"], result["isa"]) for result in results):
        group = [result for result in results if (result["op"], result["isa"]) == key]
        passed = sum(result["ok"] for result in group)
        worst = max(group, key=worst_ratio)
        style = "green" if passed == len(group) else "bold red"
        table.add_row(
            *key,
            str(len(group)),
            f"[{style}]{passed}[/]",
            f"{worst_ratio(worst):.2f}",
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
        place = ["--backend", CUDA] if result["isa"] == CUDA else ["--isa", result["isa"]]
        command = ["verify", "--op", result["op"], *place, "--case", result["case"]]
        out.print(f"[dim]reproduce: {escape(environment.reproduction(command))}[/]", soft_wrap=True)
