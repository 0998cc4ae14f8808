"""The ``tokcore bench`` command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from tokcore.testing.backend import Backend
from tokcore.testing.peaks import Peaks
from tokcore.testing.table import Case, OpTable, Variant

SCHEMA = 1  # of the JSON document; raised when a field changes its meaning


def bench(
    op: Annotated[str, typer.Option(help="Which op.")],
    case: Annotated[list[str] | None, typer.Option(help="Case name or shell pattern; repeatable.")] = None,
    measure: Annotated[str | None, typer.Option(help="forward, forward+backward, …; all by default.")] = None,
    backend: Annotated[str, typer.Option(help="Where to run: cpu, cuda, or both, comma-separated.")] = "cpu",
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
    backends = arguments.find_backends(backend)
    for place in backends:
        if not table.runs_on(place.name):
            arguments.fail(f"{op} does not run on {place.name}: tokcore info --op {op}")
    if show_list:
        print_listing(output(), table)
        return
    plans = [
        Plan(
            place,
            arguments.find_cases(table, case or [], place.case_tag),
            select_variants(table, measure, against, place),
        )
        for place in backends
    ]
    for plan in plans:
        if not plan.cases:
            where = plan.backend.name
            arguments.fail(f"{op} has no cases to time by default on {where}; name one with --case (see --list)")
    if not any(True for _ in _steps(plans)):
        named = ", ".join(dict.fromkeys(case.name for plan in plans for case in plan.cases))
        arguments.fail(f"{op} has no variant that is meant for {named}")
    arguments.check_writable(json_file, plot.with_suffix(".csv") if plot else None)
    if threads is not None:
        torch.set_num_threads(threads)
    settings = Settings(seconds, torch.get_num_threads(), seed, error, memory, arguments.TABLE_SOURCE)
    command = ["bench", "--op", op, *(["--backend", backend] if backend != "cpu" else [])]
    command += ["--seconds", f"{seconds:g}", "--threads", str(settings.threads)]
    command += ["--seed", str(seed), *(["--against", against] if against else []), *([] if error else ["--no-error"])]
    command += ["--memory"] if memory else []
    described = environment.describe()
    out = output()
    out.print(escape(environment.headline(described)), soft_wrap=True)
    peaks = {plan.backend.name: Peaks() for plan in plans}
    results = _run(out, table, plans, settings, peaks, command)
    for name in peaks:
        out.print(escape(peaks_text(peaks[name])), soft_wrap=True)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "tokcore bench",
        "op": op,
        "command": environment.reproduction(
            [*command, *(["--measure", measure] if measure else []), *_repeat("--case", plans)]
        ),
        "environment": described,
        "settings": {"seconds": seconds, "threads": settings.threads, "seed": seed},
        "peaks": {kind: rate for measured in peaks.values() for kind, rate in measured.rates.items()},
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


@dataclass(frozen=True)
class Plan:
    """What is timed on one backend: every variant of a measure on every case."""

    backend: Backend
    cases: list[Case]
    selected: dict[str, list[Variant]]  # by measure


def _repeat(option: str, plans: list[Plan]) -> list[str]:
    names = dict.fromkeys(case.name for plan in plans for case in plan.cases)
    return [word for name in names for word in (option, name)]


def select_variants(
    table: OpTable, measure: str | None, against: str | None, backend: Backend
) -> dict[str, list[Variant]]:
    """The variants to time on a backend by measure: all of tokcore's own, and the peers asked for."""
    variants = [variant for variant in table.variants if backend.name in variant.backends]
    measures = list(dict.fromkeys(variant.measure for variant in variants))
    if not measures:
        arguments.fail(f"{table.op} has no variants to time on {backend.name}")
    chosen = arguments.choose("measure", [measure] if measure else [], measures)
    known = list(dict.fromkeys(variant.name for variant in variants if variant.peer))
    names = [] if against == "none" else arguments.choose("peer", arguments.split_known(against, known), known)
    return {
        measure: [
            variant
            for variant in variants
            if variant.measure == measure and (not variant.peer or variant.name in names)
        ]
        for measure in chosen
    }


def _run(
    out: Console,
    table: OpTable,
    plans: list[Plan],
    settings: Settings,
    peaks: dict[str, Peaks],
    command: list[str],
) -> list[CaseResult]:
    results = []
    with Steps(out, len(list(_steps(plans)))) as steps:
        for plan, case, measure, variants in _steps(plans):
            title = f"{case.name} {measure} on {plan.backend.name}"
            steps.begin(title)
            on_phase = partial(_show_phase, steps, title)
            here, rates = replace(settings, backend=plan.backend), peaks[plan.backend.name]
            result = run_case(table, case, measure, variants, here, rates, steps.within, on_phase)
            reproduce = environment.reproduction([*command, "--measure", measure, "--case", case.name])
            print_case(out, table.op, result, settings.memory, reproduce)
            results.append(result)
            steps.end()
    return results


def _steps(plans: list[Plan]) -> Iterator[tuple[Plan, Case, str, list[Variant]]]:
    for plan in plans:
        for case in plan.cases:
            for measure, selected in plan.selected.items():
                variants = [variant for variant in selected if variant.applies(case)]
                if variants:
                    yield plan, case, measure, variants


def _show_phase(steps: Steps, title: str, phase: str) -> None:
    steps.detail(f"{title}: {phase}")
