"""Progress that works on a terminal (a bar) and in a log (a line every few seconds)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

SECONDS_BETWEEN_LINES = 5.0


class Stage(Protocol):
    """A piece of work of known length."""

    def advance(self, note: str = "") -> None:
        """One more unit is done; ``note`` says where things stand."""


class Progress:
    """Announces the demo's stages on ``console``."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._start = time.perf_counter()

    def say(self, text: str) -> None:
        """One line, with the seconds since the start."""
        seconds = time.perf_counter() - self._start
        self.console.print(f"[dim]{seconds:6.1f} s[/dim]  {text}", highlight=False, soft_wrap=True)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._start

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """A stage of ``total`` units; says at its end how long it took."""
        start = time.perf_counter()
        if self.console.is_terminal:
            with _rich_progress(self.console) as bar:
                yield _Bar(bar, name, total)
        else:
            yield _Lines(self, name, total)
        self.say(f"{name}: done in {time.perf_counter() - start:.1f} s")


def _rich_progress(console: Console) -> RichProgress:
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return RichProgress(*columns, console=console, transient=True)


class _Bar:
    def __init__(self, bar: RichProgress, name: str, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task(name, total=total, note="")

    def advance(self, note: str = "") -> None:
        self._bar.update(self._task, advance=1, note=note)


class _Lines:
    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self._progress = progress
        self._name = name
        self._total = total
        self._done = 0
        self._next = time.perf_counter()

    def advance(self, note: str = "") -> None:
        self._done += 1
        now = time.perf_counter()
        if now >= self._next or self._done == self._total:
            self._next = now + SECONDS_BETWEEN_LINES
            self._progress.say(f"{self._name}: {self._done}/{self._total}  {note}")
