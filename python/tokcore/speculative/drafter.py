"""What a drafter is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from tokcore.ops.draft_candidates import Candidates
from tokcore.token_tree import TokenTree


@dataclass(frozen=True)
class DraftStart:
    """What a drafter learns before the first step."""

    history: Tensor  # int64 [B, capacity], every request's prompt; new tokens are written behind it
    lengths: Tensor  # int32 [B], tokens of each
    vocab_size: int
    capacity: int  # most tokens of a request, a tree's nodes among them
    most_nodes: int  # of any tree that will be asked for


@dataclass(frozen=True)
class Draws:
    """How the model's tokens will be drawn, for drafters that draw with it."""

    rule: str  # of tokcore.verify_tree_sample
    seeds: Tensor  # int64 [B]
    options: dict[str, Any]  # temperature, top_k, top_p, min_p, typical_mass: numbers or Tensors [B]


@dataclass(frozen=True)
class DraftContext:
    """What a drafter gets in every step."""

    history: Tensor  # int64 [B, capacity]
    lengths: Tensor  # int32 [B]; the last token is the root of the tree, not yet in the model's cache
    roots: Tensor  # int64 [B]
    budgets: Tensor  # int32 [B], most nodes of each tree; 0: no tree
    draws: Draws | None = None  # None: the model takes its likeliest token


@dataclass(frozen=True)
class Draft:
    """What a drafter proposes."""

    tree: TokenTree
    joint: Tensor | None = None  # float32 [B, N]: the drafter's chance that a node is kept
    children: str | None = "fixed"  # how siblings were chosen: see tokcore.verify_tree_sample
    draft_probs: Tensor | None = None  # float32 [B, N, V] q of each node's children, for rules that test against it;
    # rows of nodes without children are 0


class Drafter(Protocol):
    """Makes trees, and learns from what the model said about them."""

    num_candidates: int
    """How many likeliest tokens of every node :meth:`update` wants to see; 0: none."""

    max_nodes: int
    """Most nodes of its trees."""

    def start(self, start: DraftStart) -> None:
        """A generation begins; what was learnt before may stay."""

    def draft(self, context: DraftContext) -> Draft:
        """A tree for each request with a budget, and an empty one for each without."""

    def update(self, context: DraftContext, tree: TokenTree, candidates: Candidates | None) -> None:
        """What the model said: its likeliest tokens [B, N, num_candidates] after every node."""
