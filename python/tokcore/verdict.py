"""``Verdict``: which nodes of a tree a verification kept."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Verdict:
    """What a verification found for each of B requests.

    The accepted nodes are a path from the root, in order; the root counts as accepted, since its token was kept before
    the tree was drafted: a request with nodes keeps at least one of them. :func:`tokcore.kv_compact` keeps their keys
    and values, and ``next_token`` is the root of the next tree.
    """

    accepted_nodes: Tensor  # int32 [B, most], the path's nodes from the root on, then -1
    accepted_counts: Tensor  # int32 [B], nodes of the path; 0 for a request without nodes
    next_token: Tensor  # int64 [B], the token after the path; -1 for a request without nodes
    # int32 [B, 2]: 0, or what is wrong with a request, and the node where; None where nothing was checked. Such a
    # request keeps no node and has no next token.
    status: Tensor | None = None
