"""Writes docs/support.md from the case tables: ``python -m tokcore.cli.support FILE [--check]``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from tokcore.cli import arguments
from tokcore.cli.bench.results import json_parameters
from tokcore.cli.console import write_text
from tokcore.testing.table import OpTable

_HEAD = """# What is supported

Generated from the case tables in `python/tokcore/testing/cases` by `python -m tokcore.cli.support docs/support.md`;
`tokcore info --op NAME` prints the same. What is not supported raises and names what is. The tests
run the CPU kernels, and execute the CUDA kernels on the CPU ([cuda.md](cuda.md)); `make gpu-check` runs them on a GPU.
"""


def render(tables: Mapping[str, OpTable]) -> str:
    """The page: per op one row per option and one column per backend, then how many cases check it."""
    return "\n".join([_HEAD, *(_section(tables[op]) for op in sorted(tables))])


def _section(table: OpTable) -> str:
    backends = list(dict.fromkeys(backend for answers in table.support.values() for backend in answers))
    lines = [f"## {table.op}", "", _row(["option", *backends]), _row(["---"] * (len(backends) + 1))]
    for option, answers in table.support.items():
        lines.append(
            _row(
                [
                    f"`{option}`" if option.isidentifier() else option,
                    *(answers.get(backend, "—") for backend in backends),
                ]
            )
        )
    verified = [case for case in table.cases if "verify" in case.tags]
    dtypes = sorted({str(json_parameters(case.parameters).get("dtype", "")) for case in verified} - {""})
    timed = sum("bench" in case.tags for case in table.cases)
    lines += [
        "",
        f"Checked by {len(verified)} verified cases{' in ' + ', '.join(dtypes) if dtypes else ''}"
        f" (`tokcore verify --op {table.op}`); {timed} cases are timed (`tokcore bench --op {table.op} --list`).",
        "",
    ]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def support(
    file: Annotated[Path, typer.Argument(help="The page to write, docs/support.md.")],
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit with 1 if out of date.")] = False,
) -> None:
    """Write the support page from the case tables."""
    text = render(arguments.all_tables())
    if not check:
        write_text(file, text)
    elif not file.exists() or file.read_text() != text:
        arguments.fail(f"{file} is out of date: run python -m tokcore.cli.support {file}", code=1)


if __name__ == "__main__":
    typer.run(support)
