"""Random token trees for the case tables."""

from __future__ import annotations

import torch
from torch import Tensor

import tokcore


def links_of(parents: Tensor, tokens: Tensor, counts: Tensor) -> tokcore.TokenTree:
    """The trees, whose values are sound; on a GPU nobody waits to look at them."""
    return tokcore.TokenTree(parents, tokens, counts, validate=parents.device.type == "cpu")


def random_parents(
    B: int, N: int, shape: str, generator: torch.Generator, ragged: bool = True
) -> tuple[Tensor, Tensor]:
    """parents [B, N] int32 with rubbish in the padding, and counts [B], the first of them N.

    Shapes: "random" any earlier node, "chain", "star" (children of the root), "wide" (one of the last few nodes).
    """
    numbers = torch.arange(N)
    if shape == "chain":
        parents = (numbers - 1).expand(B, N).clone()
    elif shape == "star":
        parents = torch.zeros(B, N, dtype=torch.int64)
    else:
        reach = numbers if shape == "random" else numbers.clamp(max=5)
        parents = numbers - 1 - (torch.rand(B, N, generator=generator) * reach).long().clamp(max=N)
    parents = torch.minimum(parents.clamp(min=0), (numbers - 1).clamp(min=0))
    parents[:, 0] = -1
    counts = torch.randint(0, N + 1, (B,), generator=generator) if ragged else torch.full((B,), N)
    counts[0] = N
    parents = torch.where(numbers < counts.unsqueeze(1), parents, 10**6)
    return parents.to(torch.int32), counts.to(torch.int32)
