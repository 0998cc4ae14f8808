"""``draft_heap``: the best nodes within a budget from what a draft model said, by a heap."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.ops import _checks as checks
from tokcore.ops import _draft_checks as draft

VALUES = ("residual", "joint")


class HeapTrees(NamedTuple):
    """Trees, best node first."""

    parents: Tensor  # int32 [B, N]
    tokens: Tensor  # int64 [B, N]
    counts: Tensor  # int32 [B]
    joint: Tensor  # float32 [B, N] product of probabilities from the root down, 1 there, 0 in padding
    sources: Tensor  # int32 [B, N] the asked node that a node is, -1: not asked yet


def _check(
    require: checks.Require,
    candidates: Tensor,
    probs: Tensor,
    asked_parents: Tensor,
    asked_ranks: Tensor,
    asked_counts: Tensor,
    roots: Tensor,
    budgets: Tensor,
    max_nodes: Any,
    value: str,
    threshold: float,
    of_wrapper: bool = False,
) -> None:
    draft.check_tensors(
        require,
        [
            ("candidates", candidates, torch.int32, 3),
            ("probs", probs, torch.float32, 3),
            ("asked_parents", asked_parents, torch.int32, 2),
            ("asked_ranks", asked_ranks, torch.int32, 2),
            ("asked_counts", asked_counts, torch.int32, 1),
            ("roots", roots, torch.int64, 1),
            ("budgets", budgets, torch.int32, 1),
        ],
        of_wrapper,
    )
    B, M, K = candidates.shape
    checks._shape(require, "probs", probs, (B, M, K), "shape of candidates")
    for name, tensor in {"asked_parents": asked_parents, "asked_ranks": asked_ranks}.items():
        checks._shape(require, name, tensor, (B, M), "[B, M] of candidates")
    for name, tensor in {"asked_counts": asked_counts, "roots": roots, "budgets": budgets}.items():
        checks._shape(require, name, tensor, (B,), "B of candidates")
    draft.check_range(require, "candidates", M, 1, draft.MOST_NODES, "M, asked nodes")
    draft.check_range(require, "candidates", K, 1, draft.MOST_CANDIDATES, "K")
    draft.check_max_nodes(require, max_nodes)
    checks.check_choice(require, "value", value, VALUES)
    require(0.0 <= threshold <= 1.0, "threshold", lambda: "a value in [0, 1]", lambda: f"{threshold}")


@torch.library.register_fake("tokcore::draft_heap")  # type: ignore[untyped-decorator]
def _heap_fake(
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
    require = checks.fake_require("draft_heap")
    tensors = (candidates, probs, asked_parents, asked_ranks, asked_counts, roots, budgets)
    _check(require, *tensors, max_nodes, value, threshold)
    shape = (candidates.size(0), max_nodes)
    trees = draft.empty_trees(candidates, *shape)
    return *trees, probs.new_empty(shape), candidates.new_empty(shape)


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
) -> HeapTrees:
    """Builds the tree of the greatest values from a draft model's candidates at the nodes at which it was asked.

    With q_i the probability of candidate i at a node whose own product of probabilities from the root is v, the value
    of the candidate is v·(1 - Σ_{j<i} q_j) (``"residual"``: those above are kept and the siblings before are not,
    DySpec's heap) or v·q_i (``"joint"``: Eagle-2). The greatest value is taken until the budget is spent or no value
    reaches ``threshold``; values 0 are never taken. Of equal values the one of the lower asked node comes first. A
    candidate at which the model was not asked becomes a leaf; ``sources`` tells which those are: asking there and
    calling again, until none is left that may have children, gives DySpec's tree exactly, with one batched forward of
    the draft model a layer.

    Args:
        candidates: int32 [B, M, K], M in [1, 256] asked nodes (node 0: the root), K in [1, 64]; -1: no more.
        probs: float32 [B, M, K].
        asked_parents, asked_ranks: int32 [B, M]: asked node m is candidate ``asked_ranks[m]`` of the asked node
            ``asked_parents[m]`` < m; not read at node 0.
        asked_counts: int32 [B] asked nodes of each request.
        roots: int64 [B] tokens.
        budgets: int32 [B], most nodes, in [0, max_nodes].
        max_nodes: N, in [1, 256].
        value: ``"residual"`` or ``"joint"``.
        threshold: in [0, 1].

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape or value, with node and request;
            on CUDA a wrong value gives that request an empty tree.

    O(N log N) a request, in fp64 products and differences: the same on every backend. Sources: DySpec (arXiv
    2410.11744), Eagle-2 (2406.16858).
    """
    require = checks.wrapper_require("draft_heap")
    checks.check_count(require, "max_nodes", max_nodes, 0, 2**31, "nodes")
    checks._number(require, "threshold", threshold)
    tensors = (candidates, probs, asked_parents, asked_ranks, asked_counts, roots, budgets)
    _check(require, *tensors, max_nodes, value, threshold, of_wrapper=True)
    options = {"max_nodes": max_nodes, "value": value, "threshold": threshold}
    return HeapTrees(*draft.call("draft_heap", lambda: torch.ops.tokcore.draft_heap(*tensors, **options)))
