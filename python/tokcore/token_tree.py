"""``TokenTree``: what a drafter proposes for several requests, as trees of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokcore.ops import _checks as checks
from tokcore.ops import _kv_checks as kv
from tokcore.ops.tree_links import MOST_NODES, WORD_BITS, check_trees

_CLASS = "TokenTree"


class TokenTree:
    """B trees of tokens, checked when they are made.

    Node 0 is the root: the last token that was kept, whose keys and values the model has not computed yet. Its parent
    is -1; every other node's parent has a lower number. A tree has its first ``counts[b]`` nodes, and what ``parents``
    and ``tokens`` hold beyond is never looked at. A node at depth d stands at position prefix + d of its sequence,
    whatever its number.

    Args:
        parents: int32 [B, N], N in [1, 256].
        tokens: int64 [B, N].
        counts: int32 [B] or a sequence of ints in [0, N]; None is N everywhere. 0: this request has no tree.
        validate: False leaves the values of trees on a GPU unchecked, which spares a synchronisation; whoever asks for
            it vouches for them. Trees on the CPU are always checked.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong device or shape, a count out of range, a root with a
            parent, a node without one or whose parent does not come before it (cycles and orphans are such); the text
            names request and node. NotImplementedError: a device without kernels.

    Links are made once, by one call of ``torch.ops.tokcore.tree_links`` in O(N·ceil(N/64)) words a tree.
    """

    def __init__(
        self, parents: Tensor, tokens: Tensor, counts: Tensor | Sequence[int] | None = None, *, validate: bool = True
    ) -> None:
        require = checks.wrapper_require(_CLASS)
        for name, value in {"parents": parents, "tokens": tokens}.items():
            checks._tensor(require, name, value)
        checks._dtype(require, "parents", parents, (torch.int32,))
        checks._dtype(require, "tokens", tokens, (torch.int64,))
        kv.check_device(require, "parents", parents)
        kv.check_same_device(require, "tokens", tokens, parents, "parents")
        checks._rank(require, "parents", parents, 2)
        checks._shape(require, "tokens", tokens, parents.shape, "shape of parents")
        if counts is None:
            counts = parents.new_full((parents.size(0),), parents.size(1))
        elif not isinstance(counts, Tensor):
            counts = torch.tensor(list(counts), dtype=torch.int32, device=parents.device)
        check_trees(require, parents, counts)
        self.parents, self.tokens, self.counts = parents, tokens, counts
        if validate and parents.device.type not in ("cpu", "meta"):
            _links(parents.cpu(), counts.cpu())
        self._words, self._depths, self._first_child, self._next_sibling = _links(parents, counts)

    # ---- sizes -------------------------------------------------------------------------------------------------------

    @property
    def batch(self) -> int:
        """B."""
        return self.parents.size(0)

    @property
    def num_nodes(self) -> int:
        """N, of the largest tree."""
        return self.parents.size(1)

    @property
    def device(self) -> torch.device:
        """Where the trees lie."""
        return self.parents.device

    def __repr__(self) -> str:
        return f"TokenTree(batch={self.batch}, num_nodes={self.num_nodes}, device={self.device})"

    # ---- links -------------------------------------------------------------------------------------------------------

    def ancestor_words(self) -> Tensor:
        """int64 [B, N, ceil(N/64)]: bit j % 64 of word j // 64 says that node j is the node or an ancestor of it.

        Padding has no bits.
        """
        return self._words

    def depths(self) -> Tensor:
        """int32 [B, N]: edges up to the root; 0 for padding."""
        return self._depths

    def links(self) -> tuple[Tensor, Tensor]:
        """First child and next sibling, int32 [B, N] each, -1 for none; siblings follow each other by number."""
        return self._first_child, self._next_sibling

    def positions(self, lengths: Tensor) -> Tensor:
        """Position of every node in its sequence, [B, N]: tokens before the tree (``lengths`` [B]) plus depth."""
        return lengths.to(self.device).unsqueeze(1) + self._depths

    def valid(self) -> Tensor:
        """bool [B, N]: what is a node and not padding."""
        return torch.arange(self.num_nodes, device=self.device) < self.counts.unsqueeze(1)

    def mask(self) -> Tensor:
        """bool [B, N, N]: whether node j is node i or an ancestor of it; the ancestor words spread out."""
        shifts = torch.arange(WORD_BITS, device=self.device)
        bits = (self._words.unsqueeze(-1) >> shifts) & 1
        return bits.flatten(-2)[..., : self.num_nodes].bool()

    def children(self, request: int, node: int) -> list[int]:
        """The numbers of a node's children, ascending."""
        first, following = self._first_child[request].tolist(), self._next_sibling[request].tolist()
        found, child = [], first[node]
        while child >= 0:
            found.append(child)
            child = following[child]
        return found

    def path(self, request: int, node: int) -> list[int]:
        """The nodes from the root down to ``node``."""
        parents = self.parents[request].tolist()
        found = [node]
        while parents[found[-1]] >= 0:
            found.append(parents[found[-1]])
        return found[::-1]

    def duplicates(self) -> Tensor:
        """bool [B, N]: nodes with the token of an earlier sibling, which some rules of verification forbid."""
        inside = self.valid()
        same = (self.parents.unsqueeze(2) == self.parents.unsqueeze(1)) & (
            self.tokens.unsqueeze(2) == self.tokens.unsqueeze(1)
        )
        return (same & inside.unsqueeze(1) & inside.unsqueeze(2)).tril(-1).any(-1)

    # ---- making them -------------------------------------------------------------------------------------------------

    @classmethod
    def chain(cls, tokens: Tensor, counts: Tensor | Sequence[int] | None = None, *, validate: bool = True) -> TokenTree:
        """Drafts without branches: node i follows node i - 1. tokens int64 [B, N]."""
        checks._tensor(checks.wrapper_require(f"{_CLASS}.chain"), "tokens", tokens)
        parents = torch.arange(-1, tokens.size(-1) - 1, dtype=torch.int32, device=tokens.device)
        return cls(parents.expand(tokens.shape).contiguous(), tokens, counts, validate=validate)

    @classmethod
    def from_mask(
        cls, mask: Tensor, tokens: Tensor, counts: Tensor | Sequence[int] | None = None, *, validate: bool = True
    ) -> TokenTree:
        """From an attention mask among the nodes, bool [B, N, N], true where node j is node i or an ancestor of it.

        Raises ValueError, with request and node, where the mask is not that of a tree.
        """
        require = checks.wrapper_require(f"{_CLASS}.from_mask")
        for name, value in {"mask": mask, "tokens": tokens}.items():
            checks._tensor(require, name, value)
        checks._dtype(require, "mask", mask, (torch.bool,))
        checks._rank(require, "tokens", tokens, 2)
        checks._shape(require, "mask", mask, (*tokens.shape, tokens.size(1)), "[B, N, N] of tokens")
        numbers = torch.arange(1, tokens.size(1) + 1, device=mask.device)
        parents = (mask.tril(-1) * numbers).amax(-1).to(torch.int32) - 1 if mask.size(-1) else mask.new_zeros(0)
        tree = cls(parents, tokens, counts, validate=validate)
        if validate:
            wrong = ((tree.mask() != mask).any(-1) & tree.valid()).nonzero()
            if len(wrong):
                request, node = wrong[0].tolist()
                require(
                    False,
                    "mask",
                    lambda: (
                        f"row {node} of request {request}: the node, its parent {int(parents[request, node])} and "
                        "all that the parent's row has"
                    ),
                    lambda: f"{mask[request, node].nonzero().flatten().tolist()}",
                )
        return tree

    # ---- a picture ---------------------------------------------------------------------------------------------------

    def plot(
        self,
        request: int = 0,
        *,
        labels: Sequence[str] | None = None,
        accepted: Sequence[int] = (),
        ax: Any = None,
        dark: bool = False,
    ) -> Any:
        """Draws one tree with matplotlib (in the extra ``tokcore[cli]``), the root on top; returns the axes.

        Args:
            request: which tree.
            labels: a text a node; None is the token's number.
            accepted: nodes of the path that was kept, drawn in the accent colour.
            ax: axes to draw into; None makes a figure.
            dark: colours for a dark page.
        """
        from tokcore._tree_plot import plot_tree

        return plot_tree(self, request, labels=labels, accepted=accepted, ax=ax, dark=dark)


def _links(parents: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator; what only its kernel can find wrong with the values becomes a ValueError."""
    try:
        return torch.ops.tokcore.tree_links(parents, counts)  # type: ignore[no-any-return]
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        if not text.startswith("tokcore.tree_links: argument"):
            raise
        raise ValueError(text.replace("tree_links", _CLASS, 1)) from None


__all__ = ["MOST_NODES", "TokenTree"]
