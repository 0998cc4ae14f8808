"""``tokcore info``: what this installation is and what it can do here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokcore import _library
from tokcore.cli import arguments, environment
from tokcore.cli.console import output, write_text


def info(
    op: Annotated[str | None, typer.Option(help="Show what this op supports.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the same to this file.")] = None,
) -> None:
    """Show versions, the instruction-set level, libraries and GPUs; with --op, what an op supports."""
    table = arguments.find_table(op) if op is not None else None
    arguments.check_writable(json_file)
    document: dict[str, Any] = {**environment.describe(), "loaded": dict(_library.loaded)}
    out = output()
    if table is None:
        _print_environment(out, document)
    else:
        document["op"] = table.op
        document["support"] = {option: dict(backends) for option, backends in table.support.items()}
        _print_support(out, table.op, document["support"])
    if json_file is not None:
        write_text(json_file, json.dumps(document, indent=1) + "\n")


def _print_environment(out: Console, document: dict[str, Any]) -> None:
    memory = document["memory_bytes"]
    levels = ", ".join(document["isa_levels"])
    rows = {
        "tokcore": document["tokcore"] + (f" (commit {document['commit'][:12]})" if document["commit"] else ""),
        "torch": document["torch"],
        "python": document["python"],
        "system": document["system"],
        "CPU": f"{document['cpu']}, {document['cpu_count']} CPUs",
        "memory": f"{memory / 2**30:.1f} GiB" if memory else "unknown",
        "instruction set": f"{document['isa']} (possible here: {levels})",
        "threads": str(document["threads"]),
        "GPUs": ", ".join(document["gpus"]) or "none seen by torch",
        **_cuda_rows(document["cuda"]),
        "environment": ", ".join(f"{name}={value}" for name, value in document["variables"].items())
        or "no TOKCORE_* variable is set",
        **{f"library {name}": state for name, state in document["loaded"].items()},
        "ops with a case table": ", ".join(arguments.all_tables()) or "none",
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        grid.add_row(f"[bold]{escape(name)}[/]", escape(value))
    out.print(grid)


def _cuda_rows(cuda: dict[str, Any]) -> dict[str, str]:
    if not cuda:
        return {}
    rows = {"CUDA": f"runtime {cuda['runtime']} in the library, driver offers {cuda['driver']}"}
    for number, device in enumerate(cuda["devices"]):
        memory = int(device["memory_bytes"]) / 2**30
        rows[f"GPU {number}"] = (
            f"{device['name']}, capability {device['capability']} (kernels: {device['kernels']}), "
            f"{device['multiprocessors']} multiprocessors, {memory:.1f} GiB"
        )
    return rows


def _print_support(out: Console, op: str, support: dict[str, dict[str, str]]) -> None:
    backends = list(dict.fromkeys(backend for answers in support.values() for backend in answers))
    table = Table("option", *backends, title=f"what {op} supports", title_justify="left")
    for option, answers in support.items():
        table.add_row(escape(option), *(escape(answers.get(backend, "—")) for backend in backends))
    out.print(table)
