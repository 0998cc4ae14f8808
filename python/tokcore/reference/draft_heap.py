"""The meaning of ``draft_heap``: DySpec's greedy choice, with Python's heap."""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from tokcore.reference.draft_trees import Nodes, padded, to_tensors


class _Request:
    """One request's heap and tree."""

    def __init__(self, candidates: Tensor, probs: Tensor, budget: int, value: str, threshold: float) -> None:
        self.tokens, self.weights = candidates.tolist(), probs.double().tolist()
        self.value, self.threshold = value, threshold
        self.tree = Nodes(budget)
        self.joint: list[float] = []
        self.sources: list[int] = []
        self.heap: list[tuple[float, int, int, int, float, float]] = []  # -value, asked, rank, node, remaining, joint

    def consider(self, m: int, rank: int, node: int, remaining: float, above: float) -> None:
        """Candidate ``rank`` of asked node m, whose own node and product these are, may be next."""
        if rank == len(self.tokens[m]) or self.tokens[m][rank] < 0:
            return
        found = above * (self.weights[m][rank] if self.value == "joint" else remaining)
        if found > 0.0 and found >= self.threshold:
            heapq.heappush(self.heap, (-found, m, rank, node, remaining, above))

    def add(self, parent: int, token: int, m: int, product: float) -> None:
        """A node, which may be the asked node m."""
        node = self.tree.add(parent, token)
        self.joint.append(product)
        self.sources.append(m)
        if m >= 0:
            self.consider(m, 0, node, 1.0, product)

    def build(self, root: int, asked: dict[tuple[int, int], int]) -> None:
        """``asked``: asked nodes by parent and rank."""
        if not self.tree.full:
            self.add(-1, root, asked.get((-1, 0), -1), 1.0)
        while self.heap and not self.tree.full:
            _, m, rank, node, remaining, above = heapq.heappop(self.heap)
            weight = self.weights[m][rank]
            self.add(node, self.tokens[m][rank], asked.get((m, rank), -1), above * weight)
            self.consider(m, rank + 1, node, max(0.0, remaining - weight), above)


def draft_heap(
    candidates: Tensor,
    probs: Tensor,
    asked_parents: Tensor,
    asked_ranks: Tensor,
    asked_counts: Tensor,
    roots: Tensor,
    budgets: Tensor,
    *,
    max_nodes: int,
    value: str = "residual",
    threshold: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """parents, tokens, counts, joint and sources of the trees."""
    requests = []
    for b, (root, budget) in enumerate(zip(roots.tolist(), budgets.tolist(), strict=True)):
        count = int(asked_counts[b])
        asked = {(int(asked_parents[b, m]), int(asked_ranks[b, m])): m for m in range(1, count)}
        if count > 0:
            asked[-1, 0] = 0
        request = _Request(candidates[b], probs[b], budget, value, threshold)
        request.build(root, asked)
        requests.append(request)
    return (
        *to_tensors([request.tree for request in requests], max_nodes),
        padded([request.joint for request in requests], max_nodes, 0.0, torch.float32),
        padded([request.sources for request in requests], max_nodes, -1, torch.int32),
    )
