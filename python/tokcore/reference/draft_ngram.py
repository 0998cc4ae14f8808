"""The meaning of ``draft_ngram``."""

from __future__ import annotations

from torch import Tensor

from tokcore.reference.draft_trees import Nodes, to_tensors


def draft_ngram(
    history: Tensor,
    lengths: Tensor,
    budgets: Tensor,
    *,
    max_nodes: int,
    longest: int = 3,
    shortest: int = 1,
    max_depth: int = 8,
) -> tuple[Tensor, Tensor, Tensor]:
    """parents, tokens and counts of the trees."""
    trees = []
    for row, length, budget in zip(history.tolist(), lengths.tolist(), budgets.tolist(), strict=True):
        text = row[:length]
        tree = Nodes(budget if text else 0)
        if not tree.full:
            tree.add(-1, text[-1])
        for n in range(longest, shortest - 1, -1):
            for end in range(length - 1, n - 1, -1):  # the n tokens before `end`, and before the last token
                if text[end - n : end] == text[length - n :]:
                    _insert(tree, text[end : end + max_depth])
        trees.append(tree)
    return to_tensors(trees, max_nodes)


def _insert(tree: Nodes, continuation: list[int]) -> None:
    node = 0
    for token in continuation:
        known = [i for i, parent in enumerate(tree.parents) if parent == node and tree.tokens[i] == token]
        if not known and tree.full:
            return
        node = known[0] if known else tree.add(node, token)
