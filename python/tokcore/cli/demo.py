"""``tokcore demo``: the main job, from text to a trained and read model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from tokcore.cli import arguments
from tokcore.demo import run_demo


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Few training steps: at most ninety seconds.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for pictures, the HTML page and CSV files.")] = Path("demo-out"),
    cache: Annotated[Path | None, typer.Option(help="Folder for tokenizer and checkpoint.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch's pool.")] = None,
) -> None:
    """Play four acts on real input: the loss, sparse attention, caches of few bits, token trees."""
    if out.exists() and not out.is_dir():
        arguments.fail(f"cannot write into {out}: it is not a folder")
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        code = run_demo(quick, out, cache, seed)
    except (ImportError, FileNotFoundError) as error:
        arguments.fail(str(error))
    if code:
        raise typer.Exit(code)
