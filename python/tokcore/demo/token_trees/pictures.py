"""Pictures of the act, each light and dark."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from tokcore._tree_plot import layout
from tokcore.demo.plots import write_plots
from tokcore.demo.theme import Theme
from tokcore.demo.token_trees.speed import DrawnStep, Method, ratio_to_plain
from tokcore.demo.tokenizer import token_texts
from tokcore.token_tree import TokenTree

MOST_SHOWN = 10  # accepted tokens that get a bar of their own


def colors(theme: Theme, count: int) -> list[str]:
    """One a method, plain decoding in grey."""
    known = [theme.series["eager upcast"], theme.series["tokcore"], theme.series["eager"], theme.accent]
    return [known[i % len(known)] for i in range(count)]


def plot_speed(methods: list[Method], folder: Path) -> list[Path]:
    """Tokens a second of every method, every generation a dot."""

    def draw(axes: Any, theme: Theme) -> None:
        axis = axes[0, 0]
        for place, (method, color) in enumerate(zip(methods, colors(theme, len(methods)), strict=True)):
            axis.barh(place, method.rate, color=color, height=0.6)
            axis.plot(method.rates, [place] * len(method.rates), "o", color=theme.ink, markersize=2.5, alpha=0.5)
            note = f"  {method.rate:.0f} tokens/s, {ratio_to_plain(method, methods):.2f}×"
            axis.text(max(*method.rates, method.rate), place, note, color=theme.ink, va="center", fontsize=10)
        axis.set_yticks(range(len(methods)), [method.name for method in methods])
        axis.invert_yaxis()
        axis.set_xlim(0, 1.35 * max(max(method.rates) for method in methods))
        axis.set_xlabel("tokens a second, greedy, one request")
        axis.grid(visible=False, axis="y")
        axis.set_title("The same text, sooner", color=theme.ink, loc="left", weight="bold")

    return write_plots(folder, "token_trees_speed", (9.0, 3.4), 1, 1, draw)


def plot_accepted(methods: list[Method], folder: Path) -> list[Path]:
    """How many drafted tokens a step kept."""
    shown = methods[1:]

    def draw(axes: Any, theme: Theme) -> None:
        axis = axes[0, 0]
        width = 0.8 / len(shown)
        for index, (method, color) in enumerate(zip(shown, colors(theme, len(methods))[1:], strict=True)):
            found = Counter(min(count, MOST_SHOWN) for count in method.accepted)
            places = [count + (index - (len(shown) - 1) / 2) * width for count in range(MOST_SHOWN + 1)]
            shares = [100.0 * found[count] / len(method.accepted) for count in range(MOST_SHOWN + 1)]
            axis.bar(
                places, shares, width=width, color=color, label=f"{method.name}: {method.mean_accepted:.2f} a step"
            )
        axis.set_xticks(range(MOST_SHOWN + 1), [*map(str, range(MOST_SHOWN)), f"≥ {MOST_SHOWN}"])
        axis.set_xlabel("drafted tokens kept in a step")
        axis.set_ylabel("steps (%)")
        axis.grid(visible=False, axis="x")
        axis.set_title("Accepted lengths", color=theme.ink, loc="left", weight="bold")
        axis.legend(frameon=False, labelcolor=theme.ink, fontsize=9)

    return write_plots(folder, "token_trees_accepted", (9.0, 3.8), 1, 1, draw)


def label(text: str) -> str:
    """A token as a label: blanks and newlines are seen."""
    marked = text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "·")
    return (marked if len(marked) <= 14 else f"{marked[:12]}…").replace("$", r"\$") or "∅"


def plot_step(step: DrawnStep, tokenizer: Tokenizer, folder: Path) -> list[Path]:
    """The tree of a step from left to right; the path that was kept stands out."""
    parents = torch.tensor([step.parents], dtype=torch.int32)
    tree = TokenTree(parents, torch.tensor([step.tokens]))
    places = [(-depth, -across) for across, depth in layout(tree, 0)]
    texts = [label(token_texts(tokenizer, [token])[0]) for token in step.tokens]
    rows = max(-y for _, y in places) + 1

    def draw(axes: Any, theme: Theme) -> None:
        axis = axes[0, 0]
        axis.axis("off")
        for kept in (False, True):
            for node, (x, y) in enumerate(places):
                inside = node in step.accepted
                if node > 0 and inside == kept:
                    above = places[step.parents[node]]
                    color, width = (theme.accent, 2.5) if inside else (theme.muted, 0.8)
                    axis.plot([above[0], x], [above[1], y], color=color, linewidth=width, zorder=1)
        for node, (x, y) in enumerate(places):
            edge = theme.accent if node in step.accepted else theme.grid
            box = {"boxstyle": "round,pad=0.3", "facecolor": theme.page, "edgecolor": edge, "linewidth": 1.6}
            axis.text(x, y, texts[node], color=theme.ink, ha="center", va="center", fontsize=9, bbox=box, zorder=2)
        axis.margins(x=0.09, y=0.06)
        title = f"One step of Token Recycling: {len(step.tokens)} nodes, {len(step.accepted) - 1} drafted tokens kept"
        axis.set_title(title, color=theme.ink, loc="left", weight="bold")

    return write_plots(folder, "token_trees_step", (9.0, max(2.5, 0.34 * rows + 0.6)), 1, 1, draw)
