"""The meaning of ``tree_links``, node by node."""

from __future__ import annotations

import torch
from torch import Tensor


def tree_links(parents: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ancestor words [B, N, ceil(N/64)], depths, first child and next sibling [B, N] of checked trees."""
    B, N = parents.shape
    words = torch.zeros(B, N, (N + 63) // 64, dtype=torch.int64)
    depths = torch.zeros(B, N, dtype=torch.int32)
    first_child, next_sibling = torch.full((2, B, N), -1, dtype=torch.int32)
    for b in range(B):
        above, children = parents[b].tolist(), [[] for _ in range(N)]  # type: list[int], list[list[int]]
        for node in range(int(counts[b])):
            if node > 0:
                children[above[node]].append(node)
            ancestor = node
            while ancestor >= 0:
                bit = 1 << ancestor % 64
                words[b, node, ancestor // 64] |= bit - (1 << 64) if bit == 1 << 63 else bit
                depths[b, node] += ancestor != node
                ancestor = above[ancestor] if ancestor > 0 else -1
        for node, found in enumerate(children):
            for i, child in enumerate(found):
                if i == 0:
                    first_child[b, node] = child
                if i + 1 < len(found):
                    next_sibling[b, child] = found[i + 1]
    return words, depths, first_child, next_sibling
