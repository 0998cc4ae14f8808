"""The demo, in four acts on real input.

A small model is trained with tokcore's loss and with the eager one; a video is attended sparsely; the model generates
over caches of few bits; and it writes several tokens a step from token trees.

:func:`run_demo` is what ``tokcore demo`` calls. It needs the extra ``tokcore[demo]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokcore.demo.require import require_packages

if TYPE_CHECKING:
    from rich.console import Console

    from tokcore.demo.settings import DemoSettings

__all__ = ["run_demo"]


def run_demo(
    quick: bool,
    out: Path,
    cache: Path | None,
    seed: int,
    *,
    settings: DemoSettings | None = None,
    root: Path | None = None,
    console: Console | None = None,
) -> int:
    """Run the demo and return its exit code: 0, or 1 when something that an act demonstrates does not hold.

    Args:
        quick: fewer training steps, for continuous integration.
        out: folder for pictures, HTML page and CSV files; created.
        cache: folder for tokenizer and checkpoint, see ``tokcore.demo.checkpoint``; None: ``$TOKCORE_CACHE`` or
            ``~/.cache/tokcore/demo``.
        seed: seed of the weights and of the batches.
        settings: sizes other than the full or quick demo's.
        root: a folder of Python files other than the standard library; it must hold ``textwrap.py``.
        console: where progress and report go; standard output by default.

    Raises:
        ImportError: an optional package is missing.
        FileNotFoundError: the standard library's sources are not installed.
    """
    require_packages()
    from tokcore.demo.pipeline import run  # only now: these modules import the optional packages

    return run(quick, out, cache, seed, settings, root, console)
