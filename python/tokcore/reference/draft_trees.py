"""What every builder's reference shares: requests' nodes as lists, and the tensors they become."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Nodes:
    """One request's tree under construction."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.parents: list[int] = []
        self.tokens: list[int] = []

    @property
    def full(self) -> bool:
        """Whether the budget is spent."""
        return len(self.parents) >= self.budget

    def add(self, parent: int, token: int) -> int:
        """A new node's number."""
        self.parents.append(parent)
        self.tokens.append(token)
        return len(self.parents) - 1


def to_tensors(trees: Sequence[Nodes], max_nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """parents [B, N] padded with -1, tokens [B, N] padded with 0, counts [B]."""
    parents = [tree.parents + [-1] * (max_nodes - len(tree.parents)) for tree in trees]
    tokens = [tree.tokens + [0] * (max_nodes - len(tree.tokens)) for tree in trees]
    shape = (len(trees), max_nodes)
    return (
        torch.tensor(parents, dtype=torch.int32).reshape(shape),
        torch.tensor(tokens, dtype=torch.int64).reshape(shape),
        torch.tensor([len(tree.parents) for tree in trees], dtype=torch.int32),
    )


def padded(rows: Sequence[Sequence[float]], max_nodes: int, fill: float, dtype: torch.dtype) -> Tensor:
    """Lists of numbers as one tensor [B, max_nodes]."""
    values = [[*row, *[fill] * (max_nodes - len(row))] for row in rows]
    return torch.tensor(values, dtype=dtype).reshape(len(rows), max_nodes)
