"""``draft_ngram``: trees of what followed the last tokens wherever they stood before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.ops import _checks as checks
from tokcore.ops import _draft_checks as draft

Trees = tuple[Tensor, Tensor, Tensor]  # parents int32 [B, N], tokens int64 [B, N], counts int32 [B]


def _check(
    require: checks.Require,
    history: Tensor,
    lengths: Tensor,
    budgets: Tensor,
    max_nodes: Any,
    longest: int,
    shortest: int,
    max_depth: int,
    of_wrapper: bool = False,
) -> None:
    arguments: list[draft.Argument] = [
        ("history", history, torch.int64, 2),
        ("lengths", lengths, torch.int32, 1),
        ("budgets", budgets, torch.int32, 1),
    ]
    draft.check_tensors(require, arguments, of_wrapper)
    checks._shape(require, "lengths", lengths, history.shape[:1], "B of history")
    checks._shape(require, "budgets", budgets, history.shape[:1], "B of history")
    draft.check_max_nodes(require, max_nodes)
    draft.check_range(require, "longest", longest, 1, 64, "tokens")
    draft.check_range(require, "shortest", shortest, 1, longest, "longest")
    draft.check_range(require, "max_depth", max_depth, 1, draft.MOST_NODES, "tokens")


@torch.library.register_fake("tokcore::draft_ngram")  # type: ignore[untyped-decorator]
def _ngram_fake(
    history: Tensor,
    lengths: Tensor,
    budgets: Tensor,
    *,
    max_nodes: int,
    longest: int = 3,
    shortest: int = 1,
    max_depth: int = 8,
) -> Trees:
    require = checks.fake_require("draft_ngram")
    _check(require, history, lengths, budgets, max_nodes, longest, shortest, max_depth)
    return draft.empty_trees(history, history.size(0), max_nodes)


def draft_ngram(
    history: Tensor,
    lengths: Tensor,
    budgets: Tensor,
    *,
    max_nodes: int,
    longest: int = 3,
    shortest: int = 1,
    max_depth: int = 8,
) -> Trees:
    """Looks the last n tokens up in the text so far, n from ``longest`` down to ``shortest``, recent places first.

    What followed them there, ``max_depth`` tokens at most, goes into one tree in which equal beginnings are one path,
    until the budget is spent.

    Args:
        history: int64 [B, L], every request's tokens; the last one is the root.
        lengths: int32 [B] tokens of each; 0 gives an empty tree.
        budgets: int32 [B], most nodes of each tree, in [0, max_nodes].
        max_nodes: N, in [1, 256].
        longest, shortest: 1 <= shortest <= longest <= 64.
        max_depth: in [1, 256].

    Returns:
        parents int32 [B, N], tokens int64 [B, N], counts int32 [B].

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape or value, with the request; on CUDA
            a wrong value gives that request an empty tree.

    O((longest - shortest + 1)·L) comparisons a request. Source: prompt lookup decoding, with all places in one tree.
    """
    require = checks.wrapper_require("draft_ngram")
    options = {"max_nodes": max_nodes, "longest": longest, "shortest": shortest, "max_depth": max_depth}
    for name, value in options.items():
        checks.check_count(require, name, value, 0, 2**31, "count")
    _check(require, history, lengths, budgets, max_nodes, longest, shortest, max_depth, of_wrapper=True)
    return draft.call("draft_ngram", lambda: torch.ops.tokcore.draft_ngram(history, lengths, budgets, **options))  # type: ignore[no-any-return]
