"""The command ``tokcore calibrate``."""

from __future__ import annotations

import re
import resource
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from tokcore.cli import arguments
from tokcore.cli.console import Steps, messages, output
from tokcore.paro import ParoPlan, StoredSample, calibrate_paro, load_samples


def calibrate(
    samples: Annotated[list[Path], typer.Argument(help="Files of samples, or folders of them, see tokcore.paro.")],
    grid: Annotated[str, typer.Option(help="Tokens of the video: F,H,W.")],
    out: Annotated[Path, typer.Option(help="The plan to write.")] = Path("paro-plan.safetensors"),
    text: Annotated[str, typer.Option(help="Text tokens before and after the video.")] = "0,0",
    density: Annotated[float, typer.Option(help="Share of blocks to keep.")] = 0.3,
    alpha: Annotated[float, typer.Option(help="Weight of the sparse score against the quantization score.")] = 0.5,
    rank: Annotated[str, typer.Option(help="Choose orders by 'scores' or by 'recall'.")] = "scores",
    block: Annotated[str, typer.Option(help="Block size: queries,keys.")] = "64,64",
    min_recall: Annotated[float, typer.Option(help="Heads that would keep less of their attention are dense.")] = 0.0,
    share_from: Annotated[float, typer.Option(help="Share of the steps after which steps share their masks.")] = 0.5,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the table to this file.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Draw every head into this folder.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch's pool.")] = None,
) -> None:
    """Choose an order of tokens and a block mask for every head from samples of its attention."""
    sizes, ends, edges = _ints("grid", grid, 3), _ints("text", text, 2), _ints("block", block, 2)
    arguments.check_writable(out, csv_file)
    if pictures is not None and pictures.exists() and not pictures.is_dir():
        arguments.fail(f"cannot draw into {pictures}: it is not a folder")
    if threads is not None:
        torch.set_num_threads(threads)
    start = time.perf_counter()
    try:
        found = load_samples(samples)
        plan = _calibrate(found, sizes, ends, density, alpha, rank, edges, share_from, min_recall)
        plan.save(out)
    except (ImportError, OSError, TypeError, ValueError) as error:
        arguments.fail(str(error).removeprefix("tokcore."))
    from tokcore.cli.calibrate.tables import table, write_csv

    written = [out]
    if csv_file is not None:
        written.append(write_csv(plan, csv_file))
    if pictures is not None:
        written += _draw(plan, found, pictures)
    output().print(table(plan))
    for path in written:
        messages().print(f"wrote {path}", soft_wrap=True, markup=False)
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    output().print(f"{seconds:.0f} s; peak memory of the process {peak / 2**20:.0f} MiB, PyTorch included")


def _calibrate(
    found: list[StoredSample],
    grid: tuple[int, ...],
    text: tuple[int, ...],
    density: float,
    alpha: float,
    rank: str,
    block: tuple[int, ...],
    share_from: float,
    min_recall: float,
) -> ParoPlan:
    from tokcore.paro.calibrate import step_groups

    groups = step_groups({sample.step for sample in found}, min(max(share_from, 0.0), 1.0))
    total = len(groups) * len({sample.layer for sample in found}) * found[0].num_heads
    with Steps(output(), total) as bar:

        def advance(text: str) -> None:
            bar.begin(text)
            bar.end()

        return calibrate_paro(
            found, grid, text, density, alpha=alpha, rank=rank, block=(block[0], block[1]), share_from=share_from,
            min_recall=min_recall, progress=advance,
        )  # fmt: skip


def _draw(plan: ParoPlan, found: list[StoredSample], folder: Path) -> list[Path]:
    from tokcore.paro.pictures import draw_heads, head_picture

    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    drawn: set[tuple[int, str]] = set()
    for sample in found:
        place = (plan.group(sample.step), sample.layer)
        if place in drawn:
            continue
        drawn.add(place)
        safe = re.sub(r"[^\w.#-]", "_", sample.layer)
        for head in range(plan.num_heads):
            picture = head_picture(plan, sample, head)
            written += draw_heads([picture], folder, f"step{plan.steps[place[0]]}-{safe}-head{head}")
    return written


def _ints(name: str, words: str, count: int) -> tuple[int, ...]:
    parts = words.replace("x", ",").split(",")
    if len(parts) != count or not all(part.strip().lstrip("-").isdigit() for part in parts):
        arguments.fail(f"--{name}: expected {count} integers with commas between them, got {words!r}")
    return tuple(int(part) for part in parts)
