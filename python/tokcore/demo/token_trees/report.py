"""What the act prints and writes."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from tokenizers import Tokenizer

from tokcore.demo.tables import write_csv
from tokcore.demo.token_trees.chance import FALSE_ALARM, SAMPLED, ChiSquare
from tokcore.demo.token_trees.speed import DrawnStep, Method, ratio_to_plain
from tokcore.demo.tokenizer import token_texts

GOAL = 1.5  # times the tokens a second of plain decoding, for Token Recycling
PARTS = ("draft", "forward", "verify", "compact")


def report(methods: list[Method], chances: list[ChiSquare], text: str, new_tokens: int) -> Sequence[RenderableType]:
    """A table of the methods, then the verdicts."""
    table = Table(title=f"Token trees: {new_tokens} tokens of code, greedy, one request", title_justify="left")
    for column in ("method", "tokens/s", "× plain", "kept a step", "nodes a step", *(f"{part} %" for part in PARTS)):
        table.add_column(column, justify="left" if column == "method" else "right")
    for method in methods:
        total = sum(method.seconds[part] for part in PARTS)
        table.add_row(
            method.name,
            f"{method.rate:.0f}",
            f"{ratio_to_plain(method, methods):.2f}",
            f"{method.mean_accepted:.2f}",
            f"{statistics.fmean(method.nodes):.1f}",
            *(f"{100.0 * method.seconds[part] / total:.0f}" for part in PARTS),
        )
    return [table, f"what they all wrote: [dim]{escape(repr(text[:90]))} …[/dim]", *_verdicts(methods, chances)]


def _verdicts(methods: list[Method], chances: list[ChiSquare]) -> list[str]:
    differing = [f"{method.name} {method.differing}×" for method in methods if method.differing]
    ratio = ratio_to_plain(methods[1], methods)
    goal = "[green]met[/green]" if ratio >= GOAL else "[yellow]not met[/yellow]"
    return [
        "greedy output identical to plain decoding: "
        + (f"[red]FAIL[/red] ({', '.join(differing)} differed)" if differing else "[green]PASS[/green]"),
        *map(_sampled, chances),
        f"goal: {methods[1].name} at {GOAL}× plain decoding: {ratio:.2f}×, {goal}",
    ]


def _sampled(chance: ChiSquare) -> str:
    equal_seeds = (
        "" if chance.same_seed_differing is None else f"; with equal seeds {chance.same_seed_differing} differ"
    )
    return (
        f"sampled by {chance.name}, {chance.samples} continuations of {SAMPLED} tokens and as many without trees: "
        f"χ² {chance.statistic:.1f} in {chance.cells} cells, p = {chance.p_value:.3g} (alarm below {FALSE_ALARM:g})"
        f"{equal_seeds}: " + ("[green]PASS[/green]" if chance.passed else "[red]FAIL[/red]")
    )


def write_tables(methods: list[Method], drawn: DrawnStep | None, tokenizer: Tokenizer, folder: Path) -> list[Path]:
    """token_trees_speed.csv, token_trees_accepted.csv and token_trees_step.csv."""
    speed = ([method.name, turn, rate] for method in methods for turn, rate in enumerate(method.rates))
    accepted = (
        [method.name, count, steps] for method in methods for count, steps in sorted(Counter(method.accepted).items())
    )
    paths = [
        write_csv(folder / "token_trees_speed.csv", ["method", "generation", "tokens_per_second"], speed),
        write_csv(folder / "token_trees_accepted.csv", ["method", "accepted", "steps"], accepted),
    ]
    if drawn is not None:
        nodes = (
            [node, parent, token, token_texts(tokenizer, [token])[0], int(node in drawn.accepted)]
            for node, (parent, token) in enumerate(zip(drawn.parents, drawn.tokens, strict=True))
        )
        paths.append(write_csv(folder / "token_trees_step.csv", ["node", "parent", "token", "text", "accepted"], nodes))
    return paths
