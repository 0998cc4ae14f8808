"""The meaning of ``draft_recycling`` and ``draft_recycling_update``."""

from __future__ import annotations

from torch import Tensor

from tokcore.reference.draft_trees import Nodes, to_tensors


def draft_recycling(
    adjacency: Tensor, roots: Tensor, budgets: Tensor, template_parents: Tensor, template_ranks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """parents, tokens and counts of the trees."""
    vocabulary = adjacency.size(0)
    trees = []
    for root, budget in zip(roots.tolist(), budgets.tolist(), strict=True):
        tree = Nodes(budget)
        place: dict[int, int] = {}  # of a template's node in the tree
        for node, (parent, rank) in enumerate(zip(template_parents.tolist(), template_ranks.tolist(), strict=True)):
            if tree.full:
                break
            if node == 0:
                place[0] = tree.add(-1, root)
            elif parent in place:
                token = int(adjacency[tree.tokens[place[parent]], rank])
                if 0 <= token < vocabulary:
                    place[node] = tree.add(place[parent], token)
        trees.append(tree)
    return to_tensors(trees, template_parents.size(0))


def draft_recycling_update(adjacency: Tensor, ids: Tensor, candidates: Tensor) -> None:
    """Rows one after another."""
    for row, token in enumerate(ids.tolist()):
        if token >= 0:
            adjacency[token] = candidates[row]
