"""``draft_recycling``: trees from a table of tokens' last successors; ``draft_recycling_update`` fills it."""

from __future__ import annotations

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.ops import _checks as checks
from tokcore.ops import _draft_checks as draft

Trees = tuple[Tensor, Tensor, Tensor]  # parents int32 [B, N], tokens int64 [B, N], counts int32 [B]


def _check_draft(
    require: checks.Require,
    adjacency: Tensor,
    roots: Tensor,
    budgets: Tensor,
    template_parents: Tensor,
    template_ranks: Tensor,
    of_wrapper: bool = False,
) -> None:
    draft.check_tensors(
        require,
        [
            ("adjacency", adjacency, torch.int32, 2),
            ("roots", roots, torch.int64, 1),
            ("budgets", budgets, torch.int32, 1),
            ("template_parents", template_parents, torch.int32, 1),
            ("template_ranks", template_ranks, torch.int32, 1),
        ],
        of_wrapper,
    )
    checks._shape(require, "budgets", budgets, roots.shape, "B of roots")
    draft.check_range(require, "template_parents", template_parents.size(0), 1, draft.MOST_NODES, "nodes")
    checks._shape(require, "template_ranks", template_ranks, template_parents.shape, "nodes of template_parents")
    draft.check_contiguous(require, "adjacency", adjacency)


@torch.library.register_fake("tokcore::draft_recycling")  # type: ignore[untyped-decorator]
def _recycling_fake(
    adjacency: Tensor, roots: Tensor, budgets: Tensor, template_parents: Tensor, template_ranks: Tensor
) -> Trees:
    require = checks.fake_require("draft_recycling")
    _check_draft(require, adjacency, roots, budgets, template_parents, template_ranks)
    return draft.empty_trees(roots, roots.size(0), template_parents.size(0))


def draft_recycling(
    adjacency: Tensor, roots: Tensor, budgets: Tensor, template_parents: Tensor, template_ranks: Tensor
) -> Trees:
    """Grows a tree from every root: node n is successor ``template_ranks[n]`` of node ``template_parents[n]``.

    Args:
        adjacency: int32 [V, K], every token's successors, best first; a number outside [0, V) is an unknown one.
        roots: int64 [B], the last tokens.
        budgets: int32 [B], most nodes of each tree, in [0, N].
        template_parents: int32 [N], N in [1, 256]: -1 at node 0, then a lower node.
        template_ranks: int32 [N], in [0, K); that of node 0 is not read.

    Returns:
        parents int32 [B, N], tokens int64 [B, N], counts int32 [B]. Nodes without a known token are left out with all
        below them, and those after them move up; so a budget of n takes a template's first n nodes where all are known.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape or value, with node or request;
            on CUDA wrong values give empty trees, of that request or, by the template, of all.

    O(N) a tree. Source: Token Recycling (arXiv 2408.08696).
    """
    require = checks.wrapper_require("draft_recycling")
    _check_draft(require, adjacency, roots, budgets, template_parents, template_ranks, of_wrapper=True)
    arguments = (adjacency, roots, budgets, template_parents, template_ranks)
    return draft.call("draft_recycling", lambda: torch.ops.tokcore.draft_recycling(*arguments))  # type: ignore[no-any-return]


def _check_update(
    require: checks.Require, adjacency: Tensor, ids: Tensor, candidates: Tensor, of_wrapper: bool = False
) -> None:
    arguments: list[draft.Argument] = [
        ("adjacency", adjacency, torch.int32, 2),
        ("ids", ids, torch.int64, 1),
        ("candidates", candidates, torch.int32, 2),
    ]
    draft.check_tensors(require, arguments, of_wrapper)
    shape = (ids.size(0), adjacency.size(1))
    checks._shape(require, "candidates", candidates, shape, "[R, K], R of ids and K of adjacency")
    draft.check_contiguous(require, "adjacency", adjacency)


@torch.library.register_fake("tokcore::draft_recycling_update")  # type: ignore[untyped-decorator]
def _update_fake(adjacency: Tensor, ids: Tensor, candidates: Tensor) -> None:
    _check_update(checks.fake_require("draft_recycling_update"), adjacency, ids, candidates)


def draft_recycling_update(adjacency: Tensor, ids: Tensor, candidates: Tensor) -> None:
    """``adjacency[ids[r]] = candidates[r]`` for rows r in order: of several rows of one token the last one stays.

    Args:
        adjacency: int32 [V, K], contiguous; changed in place.
        ids: int64 [R], below V; below 0 leaves a row out.
        candidates: int32 [R, K], as :func:`draft_candidates` gives them.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape or value; nothing is written then.
            On CUDA ids of V and above leave a row out.
    """
    _check_update(checks.wrapper_require("draft_recycling_update"), adjacency, ids, candidates, of_wrapper=True)
    arguments = (adjacency, ids, candidates)
    draft.call("draft_recycling_update", lambda: torch.ops.tokcore.draft_recycling_update(*arguments))
