"""``draft_trigram``: trees searched by PUCT in a table of trigrams; ``draft_trigram_update`` fills the table."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.ops import _checks as checks
from tokcore.ops import _draft_checks as draft


class TrigramTrees(NamedTuple):
    """Trees in the order in which the search found their nodes."""

    parents: Tensor  # int32 [B, N]
    tokens: Tensor  # int64 [B, N]
    counts: Tensor  # int32 [B]
    joint: Tensor  # float32 [B, N] product of probabilities from the root down, 1 there, 0 in padding


def _table_arguments(keys: Tensor, successors: Tensor, probs: Tensor) -> list[draft.Argument]:
    return [
        ("keys", keys, torch.int64, 1),
        ("successors", successors, torch.int32, 2),
        ("probs", probs, torch.float32, 2),
    ]


def _check_table(require: checks.Require, keys: Tensor, successors: Tensor, probs: Tensor) -> None:
    S, K = keys.size(0), successors.size(1)
    power = S > 0 and (S & (S - 1)) == 0
    require(power, "keys", lambda: "S a power of two", lambda: f"{S}")
    checks._shape(require, "successors", successors, (S, K), "[S, K], S of keys")
    require(K >= 1, "successors", lambda: "K >= 1", lambda: f"{K}")
    checks._shape(require, "probs", probs, (S, K), "[S, K] of successors")


def _check_draft(
    require: checks.Require,
    keys: Tensor,
    successors: Tensor,
    probs: Tensor,
    previous: Tensor,
    roots: Tensor,
    budgets: Tensor,
    vocab_size: Any,
    max_nodes: Any,
    simulations: int,
    max_depth: int,
    exploration: float,
    of_wrapper: bool = False,
) -> None:
    arguments = _table_arguments(keys, successors, probs)
    arguments += [
        ("previous", previous, torch.int64, 1),
        ("roots", roots, torch.int64, 1),
        ("budgets", budgets, torch.int32, 1),
    ]
    draft.check_tensors(require, arguments, of_wrapper)
    _check_table(require, keys, successors, probs)
    checks._shape(require, "previous", previous, roots.shape, "B of roots")
    checks._shape(require, "budgets", budgets, roots.shape, "B of roots")
    draft.check_range(require, "vocab_size", vocab_size, 1, 2**31 - 1, "tokens")
    draft.check_max_nodes(require, max_nodes)
    draft.check_range(require, "simulations", simulations, 0, 2**20, "simulations")
    draft.check_range(require, "max_depth", max_depth, 1, 64, "tokens")
    curious = 0.0 <= exploration < math.inf
    require(curious, "exploration", lambda: "a finite value >= 0", lambda: f"{exploration}")
    for name, tensor in {"keys": keys, "successors": successors, "probs": probs}.items():
        draft.check_contiguous(require, name, tensor)


@torch.library.register_fake("tokcore::draft_trigram")  # type: ignore[untyped-decorator]
def _trigram_fake(
    keys: Tensor,
    successors: Tensor,
    probs: Tensor,
    previous: Tensor,
    roots: Tensor,
    budgets: Tensor,
    *,
    vocab_size: int,
    max_nodes: int,
    simulations: int,
    max_depth: int = 8,
    exploration: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    require = checks.fake_require("draft_trigram")
    tensors = (keys, successors, probs, previous, roots, budgets)
    _check_draft(require, *tensors, vocab_size, max_nodes, simulations, max_depth, exploration)
    shape = (roots.size(0), max_nodes)
    return *draft.empty_trees(roots, *shape), probs.new_empty(shape)


def draft_trigram(
    keys: Tensor,
    successors: Tensor,
    probs: Tensor,
    previous: Tensor,
    roots: Tensor,
    budgets: Tensor,
    *,
    vocab_size: int,
    max_nodes: int,
    simulations: int,
    max_depth: int = 8,
    exploration: float = 1.0,
) -> TrigramTrees:
    """Searches trees in a table P(x | a, b): each simulation adds at most one node.

    A simulation goes down from the root by the greatest Q + c·P·√n / (1 + n_x) — n visits of the node plus one, n_x
    those of the edge, c ``exploration``, of equal values the lower rank — and ends at a node that is new, at
    ``max_depth`` or where the table knows no successor. Every edge it passed gains the expected number of tokens kept
    from there on along this path over ``max_depth``; Q is an edge's mean gain.

    Args:
        keys: int64 [S], S a power of two: a·2³² + b of the pair that lies in a slot, -1 where none does.
        successors: int32 [S, K], best first; outside [0, vocab_size): no more.
        probs: float32 [S, K].
        previous: int64 [B], the token before the root, -1: none (then the root has no children).
        roots: int64 [B]. budgets: int32 [B], most nodes, in [0, max_nodes].
        vocab_size: V. max_nodes: N, in [1, 256]. simulations: in [0, 2²⁰]. max_depth: in [1, 64].
        exploration: a finite value >= 0.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape or value, with the request; on CUDA
            a wrong value gives that request an empty tree.

    O(simulations·max_depth·K) a request, in fp64: the same on every backend. Source: ADED (arXiv 2407.12021); the gain
    of an edge is this library's own.
    """
    require = checks.wrapper_require("draft_trigram")
    tensors = (keys, successors, probs, previous, roots, budgets)
    checks._number(require, "exploration", exploration)
    _check_draft(require, *tensors, vocab_size, max_nodes, simulations, max_depth, exploration, of_wrapper=True)
    options = {"vocab_size": vocab_size, "max_nodes": max_nodes, "simulations": simulations, "max_depth": max_depth}
    kernel = torch.ops.tokcore.draft_trigram
    return TrigramTrees(*draft.call("draft_trigram", lambda: kernel(*tensors, **options, exploration=exploration)))


def _check_update(
    require: checks.Require,
    keys: Tensor,
    successors: Tensor,
    probs: Tensor,
    contexts: Tensor,
    candidates: Tensor,
    candidate_probs: Tensor,
    of_wrapper: bool = False,
) -> None:
    arguments = _table_arguments(keys, successors, probs)
    arguments += [
        ("contexts", contexts, torch.int64, 2),
        ("candidates", candidates, torch.int32, 2),
        ("candidate_probs", candidate_probs, torch.float32, 2),
    ]
    draft.check_tensors(require, arguments, of_wrapper)
    _check_table(require, keys, successors, probs)
    R, K = contexts.size(0), successors.size(1)
    checks._shape(require, "contexts", contexts, (R, 2), "pairs")
    checks._shape(require, "candidates", candidates, (R, K), "[R, K], R of contexts and K of successors")
    checks._shape(require, "candidate_probs", candidate_probs, (R, K), "shape of candidates")
    for name, tensor in {"keys": keys, "successors": successors, "probs": probs}.items():
        draft.check_contiguous(require, name, tensor)


@torch.library.register_fake("tokcore::draft_trigram_update")  # type: ignore[untyped-decorator]
def _update_fake(
    keys: Tensor, successors: Tensor, probs: Tensor, contexts: Tensor, candidates: Tensor, candidate_probs: Tensor
) -> None:
    require = checks.fake_require("draft_trigram_update")
    _check_update(require, keys, successors, probs, contexts, candidates, candidate_probs)


def draft_trigram_update(
    keys: Tensor, successors: Tensor, probs: Tensor, contexts: Tensor, candidates: Tensor, candidate_probs: Tensor
) -> None:
    """Puts rows of successors into the table, in order: of several rows of one slot the last one stays.

    Args:
        keys, successors, probs: the table of :func:`draft_trigram`, contiguous; changed in place.
        contexts: int64 [R, 2] pairs (a, b), tokens below 2³¹; a token below 0 leaves a row out.
        candidates: int32 [R, K]. candidate_probs: float32 [R, K]; as :func:`draft_candidates` gives them.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape or value; nothing is written then.
            On CUDA tokens of 2³¹ and above leave a row out.
    """
    require = checks.wrapper_require("draft_trigram_update")
    tensors = (keys, successors, probs, contexts, candidates, candidate_probs)
    _check_update(require, *tensors, of_wrapper=True)
    draft.call("draft_trigram_update", lambda: torch.ops.tokcore.draft_trigram_update(*tensors))
