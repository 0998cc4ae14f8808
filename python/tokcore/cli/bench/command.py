"""The ``tokcore bench`` command."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape

from tokcore.cli import arguments, environment
from tokcore.cli.bench.goals import check
from tokcore.cli.bench.listing import print_listing
from tokcore.cli.bench.results import CaseResult
from tokcore.cli.bench.run import Settings, run_case
from tokcore.cli.bench.tables import peaks_text, print_case
from tokcore.cli.console import Steps, output, write_text
from tokcore.testing.peaks import Peaks
from tokcore.testing.table import Case, OpTable, Variant

SCHEMA = 1  # of the JSON document; raised when a field changes its meaning


def bench(
    op: Annotated[str, typer.Option(help="Which op.")],
    case: Annotated[list[str] | None, typer.Option(help="Case name or shell pattern; repeatable.")] = None,
    measure: Annotated[str | None, typer.Option(help="forward, forward+backward, …; all by default.")] = None,
    backend: Annotated[str, typer.Option(help="Where to run.")] = "cpu",
    against: Annotated[str | None, typer.Option(help="Peers by name, comma-separated; 'none' for no peer.")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time per case and measure, warm-up aside.")] = 5.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch's pool.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the inputs.")] = 0,
    error: Annotated[bool, typer.Option(help="Compare with the fp64 reference.")] = True,
    memory: Annotated[bool, typer.Option("--memory", help="Measure peak memory in fresh processes.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw F-light.png, F-dark.png and write F.csv.")] = None,
    check_goals: Annotated[bool, typer.Option("--check", help="Exit with 1 if a goal falls short.")] = False,
    show_list: Annotated[bool, typer.Option("--list", help="List cases, variants and goals; run nothing.")] = False,
) -> None:
    """Time an op beside its peers, interleaved in one process."""
    table = arguments.find_table(op)
    arguments.choose("backend", [backend], ["cpu"])
    if show_list:
        print_listing(output(), table)
        return
    cases = arguments.find_cases(table, case or [], "bench")
    if not cases:
        arguments.fail(f"{op} has no cases to time by default; name one with --case (see --list)")
    selected = select_variants(table, measure, against)
    arguments.check_writable(json_file, plot.with_suffix(".csv") if plot else None)
    if threads is not None:
        torch.set_num_threads(threads)
    settings = Settings(seconds, torch.get_num_threads(), seed, error, memory, arguments.TABLE_SOURCE)
    command = ["bench", "--op", op, "--seconds", f"{seconds:g}", "--threads", str(settings.threads)]
    command += ["--seed", str(seed), *(["--against", against] if against else []), *([] if error else ["--no-error"])]
    command += ["--memory"] if memory else []
    described = environment.describe()
    out = output()
    out.print(escape(environment.headline(described)), soft_wrap=True)
    peaks = Peaks()
    results = _run(out, table, cases, selected, settings, peaks, command)
    out.print(escape(peaks_text(peaks)), soft_wrap=True)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "tokcore bench",
        "op": op,
        "command": environment.reproduction(
            [*command, *(["--measure", measure] if measure else []), *_repeat("--case", cases)]
        ),
        "environment": described,
        "settings": {"seconds": seconds, "threads": settings.threads, "seed": seed},
        "peaks": peaks.rates,
        "results": [result.to_json() for result in results],
    }
    if json_file is not None:
        write_text(json_file, json.dumps(document, indent=1) + "\n")
    if plot is not None:
        from tokcore.cli.bench.plot import draw

        draw(document, plot)
    if any(missing.failed for result in results for missing in result.missing):
        arguments.fail("a variant of tokcore failed (see above)", code=1)
    problem = check(results) if check_goals else None
    if problem is not None:
        arguments.fail(problem, code=1)


def _repeat(option: str, cases: list[Case]) -> list[str]:
    return [word for case in cases for word in (option, case.name)]


def select_variants(table: OpTable, measure: str | None, against: str | None) -> dict[str, list[Variant]]:
    """The variants to time by measure: all of tokcore's own, and the peers asked for."""
    measures = list(dict.fromkeys(variant.measure for variant in table.variants))
    if not measures:
        arguments.fail(f"{table.op} has no variants to time")
    chosen = arguments.choose("measure", [measure] if measure else [], measures)
    known = list(dict.fromkeys(variant.name for variant in table.variants if variant.peer))
    names = [] if against == "none" else arguments.choose("peer", arguments.split_names(against), known)
    return {
        measure: [
            variant
            for variant in table.variants
            if variant.measure == measure and (not variant.peer or variant.name in names)
        ]
        for measure in chosen
    }


def _run(
    out: Console,
    table: OpTable,
    cases: list[Case],
    selected: dict[str, list[Variant]],
    settings: Settings,
    peaks: Peaks,
    command: list[str],
) -> list[CaseResult]:
    results = []
    with Steps(out, len(cases) * len(selected)) as steps:
        for case in cases:
            for measure, variants in selected.items():
                title = f"{case.name} {measure}"
                steps.begin(title)
                on_phase = partial(_show_phase, steps, title)
                result = run_case(table, case, measure, variants, settings, peaks, steps.within, on_phase)
                reproduce = environment.reproduction([*command, "--measure", measure, "--case", case.name])
                print_case(out, table.op, result, settings.memory, reproduce)
                results.append(result)
                steps.end()
    return results


def _show_phase(steps: Steps, title: str, phase: str) -> None:
    steps.detail(f"{title}: {phase}")
