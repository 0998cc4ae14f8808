"""``tree_links``: ancestors as bits, depths and lists of children of token trees, in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.ops import _checks as checks
from tokcore.ops import _kv_checks as kv

MOST_NODES = 256
WORD_BITS = 64


def num_words(num_nodes: int) -> int:
    """64-bit words that hold a bit a node."""
    return (num_nodes + WORD_BITS - 1) // WORD_BITS


def check_trees(require: checks.Require, parents: Tensor, counts: Tensor) -> None:
    """In the order and wording of csrc/speculative/tree_links_check.h."""
    checks._dtype(require, "parents", parents, (torch.int32,))
    checks._dtype(require, "counts", counts, (torch.int32,))
    kv.check_same_device(require, "counts", counts, parents, "parents")
    checks._rank(require, "parents", parents, 2)
    checks._shape(require, "counts", counts, parents.shape[:1], "B of parents")
    N = parents.size(1)
    fits = N >= 1 and N <= MOST_NODES
    require(fits, "parents", lambda: f"N in [1, {MOST_NODES}]", lambda: f"{N}")


@torch.library.register_fake("tokcore::tree_links")  # type: ignore[untyped-decorator]
def _tree_links_fake(parents: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_trees(checks.fake_require("tree_links"), parents, counts)
    B, N = parents.shape
    words = parents.new_empty((B, N, num_words(N)), dtype=torch.int64)
    return words, parents.new_empty((B, N)), parents.new_empty((B, N)), parents.new_empty((B, N))
