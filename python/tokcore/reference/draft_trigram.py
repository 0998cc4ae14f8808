"""The meaning of ``draft_trigram`` and ``draft_trigram_update``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokcore.reference.draft_trees import Nodes, padded, to_tensors

_MASK = (1 << 64) - 1


def slot_of(a: int, b: int, num_slots: int) -> int:
    """Where the pair's row lies in the table."""
    x = ((a << 32 | b) * 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 32)) * 0xD6E8FEB86659FD93) & _MASK
    return (x ^ (x >> 29)) & (num_slots - 1)


class _Edge:
    def __init__(self, token: int, prob: float) -> None:
        self.token, self.prob = token, prob
        self.visits, self.total, self.child = 0, 0.0, -1


def draft_trigram(
    keys: Tensor,
    successors: Tensor,
    probs: Tensor,
    previous: Tensor,
    roots: Tensor,
    budgets: Tensor,
    *,
    vocab_size: int,
    max_nodes: int,
    simulations: int,
    max_depth: int = 8,
    exploration: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """parents, tokens, counts and joint of the trees."""

    def edges_of(a: int, b: int) -> list[_Edge]:
        slot = slot_of(a, b, keys.size(0)) if a >= 0 else -1
        if slot < 0 or int(keys[slot]) != a << 32 | b:
            return []
        pairs = zip(successors[slot].tolist(), probs[slot].double().tolist(), strict=True)
        return [_Edge(token, prob) for token, prob in pairs if 0 <= token < vocab_size and prob > 0]

    trees, joints = [], []
    for before, root, budget in zip(previous.tolist(), roots.tolist(), budgets.tolist(), strict=True):
        tree = Nodes(budget)
        joint: list[float] = []
        edges: list[list[_Edge]] = []
        if not tree.full:
            tree.add(-1, root)
            joint.append(1.0)
            edges.append(edges_of(before, root))
        for _ in range(simulations):
            if tree.full:
                break
            node, product, path = 0, 1.0, list[_Edge]()
            while len(path) < max_depth and edges[node]:
                root_of_visits = math.sqrt(1 + sum(edge.visits for edge in edges[node]))
                scores = [
                    (edge.total / edge.visits if edge.visits else 0.0)
                    + exploration * edge.prob * root_of_visits / (1 + edge.visits)
                    for edge in edges[node]
                ]
                edge = edges[node][scores.index(max(scores))]
                path.append(edge)
                product *= edge.prob
                if edge.child < 0:
                    edge.child = tree.add(node, edge.token)
                    joint.append(product)
                    edges.append(edges_of(tree.tokens[node], edge.token))
                    break
                node = edge.child
            gain = 0.0
            for edge in reversed(path):
                gain = edge.prob * (1.0 + gain)
                edge.total += gain / max_depth
                edge.visits += 1
        trees.append(tree)
        joints.append(joint)
    return (*to_tensors(trees, max_nodes), padded(joints, max_nodes, 0.0, torch.float32))


def draft_trigram_update(
    keys: Tensor, successors: Tensor, probs: Tensor, contexts: Tensor, candidates: Tensor, candidate_probs: Tensor
) -> None:
    """Rows one after another."""
    for row, (a, b) in enumerate(contexts.tolist()):
        if a >= 0 and b >= 0:
            slot = slot_of(a, b, keys.size(0))
            keys[slot] = a << 32 | b
            successors[slot] = candidates[row]
            probs[slot] = candidate_probs[row]
