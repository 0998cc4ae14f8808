"""Turning names on the command line into tables, cases and variants; a wrong name ends in one line and exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

import typer

from tokcore.testing import cuda
from tokcore.testing.backend import Backend, find_backend
from tokcore.testing.table import Case, OpTable
from tokcore.testing.worker import TABLES, load_tables

_MOST_NAMED = 12  # names that still make a readable line

TABLE_SOURCE = TABLES  # where every command, and the workers it starts, finds the case tables


def fail(message: str, code: int = 2) -> NoReturn:
    """Ends the command with one line on standard error."""
    typer.echo(f"tokcore: {message}", err=True)
    raise typer.Exit(code)


def unknown(kind: str, name: str, known: Iterable[str]) -> NoReturn:
    """Ends the command because ``name`` is not one of ``known``; of very many it names the nearest."""
    names = list(known)
    if len(names) > _MOST_NAMED:
        nearest = difflib.get_close_matches(name, names, n=_MOST_NAMED // 2, cutoff=0.0)
        fail(f"unknown {kind} {name!r}; nearest of the {len(names)} known: {'; '.join(nearest)}; --list shows all")
    fail(f"unknown {kind} {name!r}; known: {', '.join(names) or 'none'}")


def choose(kind: str, names: Iterable[str], known: Sequence[str]) -> list[str]:
    """``names`` without repetitions, each checked to be one of ``known``; all of ``known`` for no names."""
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in known:
            unknown(kind, name, known)
    return chosen or list(known)


def all_tables() -> dict[str, OpTable]:
    """The case tables of this installation."""
    return load_tables(TABLE_SOURCE)


def find_table(op: str) -> OpTable:
    """The case table of ``op``."""
    tables = all_tables()
    if op not in tables:
        unknown("op", op, tables)
    return tables[op]


def find_cases(table: OpTable, names: Sequence[str], tag: str) -> list[Case]:
    """The cases called ``names``, in table order; those tagged ``tag`` for no names.

    A shell pattern is about cases of the purpose at hand, those to verify for the tag "verify", those to time for any
    other: what one is made for need not work with the other. A name in full takes the case whatever it is for.
    """
    if not names:
        return [case for case in table.cases if tag in case.tags]
    meant = {case.name for case in table.cases if (tag in case.tags if tag == "verify" else case.timed)}

    def chosen(case: Case, name: str) -> bool:
        return case.name == name or (case.name in meant and fnmatchcase(case.name, name))

    for name in names:
        if not any(chosen(case, name) for case in table.cases):
            others = sum(fnmatchcase(case.name, name) for case in table.cases)
            if others:
                purpose = "verify" if tag == "verify" else "time"
                fail(f"{name!r} matches no case to {purpose}, and {others} others of {table.op}: name one in full")
            unknown("case", name, (case.name for case in table.cases))
    return [case for case in table.cases if any(chosen(case, name) for name in names)]


def find_backends(text: str) -> list[Backend]:
    """The backends in a comma-separated option; ends the command when one of them cannot run here."""
    names = choose("backend", split_names(text), ("cpu", "cuda"))
    reason = cuda.missing() if "cuda" in names else None
    if reason is not None:
        fail(f"backend cuda cannot run here: {reason}")
    return [find_backend(name) for name in names]


def split_names(text: str | None) -> list[str]:
    """The names in a comma-separated option."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def split_known(text: str | None, known: Sequence[str]) -> list[str]:
    """As :func:`split_names`, where names in ``known`` may hold commas themselves."""
    words, names = split_names(text), []
    while words:
        joined = [", ".join(words[:count]) for count in range(len(words), 0, -1)]  # the longest first
        names.append(next((name for name in joined if name in known), words[0]))
        del words[: names[-1].count(", ") + 1]
    return names


def check_writable(*paths: Path | None) -> None:
    """Ends the command when a result file could not be written, before an hour of work instead of after."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            fail(f"cannot write {path}: it is a folder")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            existed = path.exists()
            path.open("a").close()
            if not existed:
                path.unlink()
        except OSError as error:
            fail(f"cannot write {path}: {error.strerror or error}")
