"""Static shapes of trees: which ranks of which nodes are worth a place."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokcore.ops import _checks as checks
from tokcore.ops import _draft_checks as draft

RANK_ACCEPTANCE = (0.50, 0.14, 0.08, 0.05, 0.04, 0.03, 0.025, 0.02)
"""How often the candidate of each rank is the token that follows, as :func:`greedy_template` assumes: the first one in
half of all cases, then a tail that falls like 1/rank."""


@dataclass(frozen=True)
class Template:
    """A tree without tokens, nodes by falling value: its first n nodes are the best template of n nodes."""

    parents: Tensor  # int32 [N], -1 at node 0
    ranks: Tensor  # int32 [N], which candidate of its parent a node is; 0 at node 0
    depths: Tensor  # int32 [N]

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.parents.numel()

    @property
    def num_ranks(self) -> int:
        """Candidates of a node that the template asks for."""
        return int(self.ranks.max()) + 1


def greedy_template(
    num_nodes: int = 81, max_depth: int = 6, rank_acceptance: Sequence[float] = RANK_ACCEPTANCE
) -> Template:
    """The template with the most tokens accepted in expectation, if every rank is accepted independently.

    A node's value is the product of ``rank_acceptance`` along its path; the greatest value is taken again and again
    among the children of what has been taken, of equal values the one of the lower parent. Values fall from parent to
    child and from rank to rank, hence no other template of ``num_nodes`` nodes and ``max_depth`` layers has a greater
    sum, and every prefix of the order is itself the best template of its size.

    Args:
        num_nodes: in [1, 256], the root among them.
        max_depth: layers below the root.
        rank_acceptance: falling probabilities in (0, 1), one a rank.

    Raises:
        ValueError: a value out of range, or more nodes than the layers have.
    """
    require = checks.wrapper_require("speculative.greedy_template")
    checks.check_count(require, "num_nodes", num_nodes, 1, draft.MOST_NODES, "nodes of a tree")
    checks.check_count(require, "max_depth", max_depth, 0, draft.MOST_NODES, "layers")
    chances = list(rank_acceptance)
    falling = bool(chances) and all(a >= b for a, b in itertools.pairwise(chances))
    good = falling and all(0.0 < chance < 1.0 for chance in chances)
    require(good, "rank_acceptance", lambda: "falling values in (0, 1)", lambda: f"{chances}")
    parents, ranks, depths = [-1], [0], [0]
    heap: list[tuple[float, int, int]] = []  # -value, parent, rank

    def offer(value: float, parent: int, rank: int) -> None:
        if rank < len(chances) and depths[parent] < max_depth:
            heapq.heappush(heap, (-value * chances[rank], parent, rank))

    values = [1.0]
    offer(1.0, 0, 0)
    while len(parents) < num_nodes:
        enough = bool(heap)
        require(enough, "num_nodes", lambda: f"at most {len(parents)} (nodes of these layers)", lambda: f"{num_nodes}")
        value, parent, rank = heapq.heappop(heap)
        parents.append(parent)
        ranks.append(rank)
        depths.append(depths[parent] + 1)
        values.append(-value)
        offer(values[parent], parent, rank + 1)
        offer(-value, len(parents) - 1, 0)
    return Template(*(torch.tensor(part, dtype=torch.int32) for part in (parents, ranks, depths)))
