"""A picture of one token tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokcore.token_tree import TokenTree

# page, ink, edges, nodes, accepted
_LIGHT = ("#ffffff", "#1c2430", "#b8c0cc", "#e8eefb", "#a8e0cd")
_DARK = ("#12161c", "#e6eaf0", "#4a5462", "#24344f", "#1d6a54")


def layout(tree: TokenTree, request: int) -> list[tuple[float, float]]:
    """(x, y) of every node: leaves side by side in order, parents above the middle of their children."""
    count = int(tree.counts[request])
    depths = tree.depths()[request].tolist()
    across = [0.0] * count
    leaves = 0

    def place(node: int) -> None:
        nonlocal leaves
        children = tree.children(request, node)
        if not children:
            across[node] = float(leaves)
            leaves += 1
            return
        for child in children:
            place(child)
        across[node] = (across[children[0]] + across[children[-1]]) / 2

    if count:
        place(0)
    return [(across[node], -float(depths[node])) for node in range(count)]


def plot_tree(
    tree: TokenTree, request: int, *, labels: Sequence[str] | None, accepted: Sequence[int], ax: Any, dark: bool
) -> Any:
    """See :meth:`tokcore.TokenTree.plot`."""
    import matplotlib.pyplot as plt

    page, ink, edge, fill, kept = _DARK if dark else _LIGHT
    places = layout(tree, request)
    parents = tree.parents[request].tolist()
    texts = labels if labels is not None else [str(token) for token in tree.tokens[request].tolist()]
    if ax is None:
        width = max((x for x, _ in places), default=0.0) + 1.0
        height = 1.0 - min((y for _, y in places), default=0.0)
        _, ax = plt.subplots(figsize=(max(3.0, 0.8 * width), max(1.5, 0.9 * height)), facecolor=page)
    ax.set_facecolor(page)
    ax.axis("off")
    ax.margins(0.1)
    for node, (x, y) in enumerate(places):
        if node > 0:
            above = places[parents[node]]
            on_path = node in accepted and parents[node] in accepted
            ax.plot([above[0], x], [above[1], y], color=kept if on_path else edge, linewidth=3 if on_path else 1)
    for node, (x, y) in enumerate(places):
        box = {"boxstyle": "round,pad=0.3", "facecolor": kept if node in accepted else fill, "edgecolor": edge}
        ax.text(x, y, texts[node], color=ink, ha="center", va="center", fontsize=9, bbox=box)
    return ax
