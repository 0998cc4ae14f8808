"""Consoles and progress bars that also read well in a log file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

_LOG_WIDTH = 180  # columns when nobody is looking: a table in a log is not to be cut to 80


def _console(stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    fixed = None if stream.isatty() or "COLUMNS" in os.environ else _LOG_WIDTH
    return Console(stderr=stderr, width=fixed, highlight=False)


def output() -> Console:
    """Results go to standard output."""
    return _console(stderr=False)


def messages() -> Console:
    """Progress and messages go to standard error."""
    return _console(stderr=True)


class Steps:
    """A progress bar over steps of equal length; without a terminal, one line per step on standard error."""

    def __init__(self, out: Console, total: int) -> None:
        console = out if out.is_terminal else messages()  # one live console only: two would overwrite each other
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total)
        self._done = 0

    def __enter__(self) -> Steps:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def begin(self, description: str) -> None:
        """Names the step that starts now."""
        if self._progress.disable:
            self._progress.console.print(description, soft_wrap=True, markup=False)
        self._progress.update(self._task, description=escape(description))

    def detail(self, description: str) -> None:
        """What the current step is about just now; only a terminal shows it."""
        self._progress.update(self._task, description=escape(description))

    def within(self, fraction: float) -> None:
        """How far the current step has come, from 0 to 1."""
        self._progress.update(self._task, completed=self._done + fraction)

    def end(self) -> None:
        """The current step is done."""
        self._done += 1
        self._progress.update(self._task, completed=self._done)


def write_text(path: Path, text: str) -> None:
    """Writes a file, making its folder, and says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    messages().print(f"wrote {path}", soft_wrap=True, markup=False)
