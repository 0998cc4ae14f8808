"""Checks of what verifies a tree, in the order and wording of csrc/speculative/verify_tree_check.h."""

from __future__ import annotations

import torch
from torch import Tensor

from tokcore.ops import _checks as checks
from tokcore.ops import _kv_checks as kv
from tokcore.ops.tree_links import MOST_NODES
from tokcore.token_tree import TokenTree
from tokcore.verdict import Verdict

AGAINST_DRAFT = ("without_replacement", "iid")
RULES = ("coupled", "without_replacement", "iid", "target_only", "typical")


def check_tree(require: checks.Require, tree: dict[str, Tensor], other: Tensor, other_name: str) -> None:
    """The five tensors of a tree, against logits or target tokens [B, N, …]."""
    for name, value in tree.items():
        checks._dtype(require, name, value, (torch.int64 if name == "tokens" else torch.int32,))
    for name, value in tree.items():
        kv.check_same_device(require, name, value, other, other_name)
    for name, value in tree.items():
        shape, letters = (other.shape[:1], "B") if name == "counts" else (other.shape[:2], "[B, N]")
        checks._shape(require, name, value, shape, f"{letters} of {other_name}")
    N = other.size(1)
    fits = N >= 1 and N <= MOST_NODES
    require(fits, "tokens", lambda: f"N in [1, {MOST_NODES}]", lambda: f"{N}")


def check_rule(
    require: checks.Require,
    rule: str,
    lossless: bool,
    draft_probs: Tensor | None,
    logits: Tensor,
    typical_epsilon: float,
    typical_alpha: float,
) -> None:
    """The rule and what it needs."""
    checks.check_choice(require, "rule", rule, RULES)
    given = draft_probs is not None
    against_draft = rule in AGAINST_DRAFT
    require(not against_draft or given, "draft_probs", lambda: "a Tensor for this rule", lambda: "None")
    require(against_draft or not given, "draft_probs", lambda: "None for this rule", lambda: "a Tensor")
    require(
        rule != "typical" or not lossless, "lossless", lambda: "False for rule 'typical'", lambda: f"{bool(lossless)}"
    )
    for name, value in {"typical_epsilon": typical_epsilon, "typical_alpha": typical_alpha}.items():
        inside = 0.0 <= value <= 1.0
        require(inside, name, lambda: "a value in [0, 1]", lambda value=value: f"{value}")  # type: ignore[misc]
    if draft_probs is None:
        return
    checks._dtype(require, "draft_probs", draft_probs, (torch.float32,))
    kv.check_same_device(require, "draft_probs", draft_probs, logits, "logits")
    checks._shape(require, "draft_probs", draft_probs, logits.shape, "[B, N, V] of logits")
    kv.check_unit_stride(require, "draft_probs", draft_probs)


def check_rows_option(require: checks.Require, rows: object) -> None:
    """Which rows are read when."""
    checks.check_choice(require, "rows", rows, ("auto", "path", "all"))


def outputs_like(other: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a fake."""
    B, N = other.size(0), other.size(1)
    return (
        other.new_empty((B, N), dtype=torch.int32),
        other.new_empty((B,), dtype=torch.int32),
        other.new_empty((B,), dtype=torch.int64),
        other.new_empty((B, 2), dtype=torch.int32),
    )


def tensors_of(require: checks.Require, tree: object) -> dict[str, Tensor]:
    """What the operators take of a tree."""
    is_tree = isinstance(tree, TokenTree)
    require(is_tree, "tree", lambda: "a TokenTree", lambda: type(tree).__name__, TypeError)
    assert isinstance(tree, TokenTree)
    first_child, next_sibling = tree.links()
    named = {"tokens": tree.tokens, "parents": tree.parents, "counts": tree.counts}
    return {**named, "first_child": first_child, "next_sibling": next_sibling}


def to_verdict(outputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> Verdict:
    """The operators' outputs by name."""
    nodes, counts, next_token, status = outputs
    return Verdict(nodes, counts, next_token, status)
