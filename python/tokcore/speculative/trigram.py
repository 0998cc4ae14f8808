"""ADED: a table of trigrams kept up to date by the model, searched by PUCT."""

from __future__ import annotations

import torch
from torch import Tensor

from tokcore.ops.draft_candidates import Candidates
from tokcore.ops.draft_trigram import draft_trigram, draft_trigram_update
from tokcore.speculative.drafter import Draft, DraftContext, DraftStart
from tokcore.token_tree import TokenTree


class TriGram:
    """Drafts by a search in P(x | a, b), which every verification refreshes with the model's own probabilities.

    Args:
        max_nodes: of a tree, in [1, 256].
        successors: K, kept for a pair.
        slots: of the table, a power of two: 65536·(8 + 8·K) bytes by default. A pair takes the slot it hashes to.
        simulations: of the search, for each node that a tree may have.
        max_depth: of a tree.
        exploration: weight of the prior against the mean gain.

    The table stays from one generation to the next. Source: ADED (arXiv 2407.12021).
    """

    def __init__(
        self,
        max_nodes: int = 32,
        successors: int = 8,
        slots: int = 65536,
        simulations: int = 4,
        max_depth: int = 8,
        exploration: float = 1.0,
    ) -> None:
        self.max_nodes, self.num_candidates, self.slots = max_nodes, successors, slots
        self.simulations, self.max_depth, self.exploration = simulations, max_depth, exploration
        self._table: tuple[Tensor, Tensor, Tensor] | None = None
        self._vocab_size = 0

    def start(self, start: DraftStart) -> None:
        """An empty table, unless there is one already."""
        device = start.history.device
        if self._table is None or self._vocab_size != start.vocab_size or self._table[0].device != device:
            shape = (self.slots, self.num_candidates)
            self._table = (
                torch.full((self.slots,), -1, device=device),
                torch.full(shape, -1, dtype=torch.int32, device=device),
                torch.zeros(shape, device=device),
            )
        self._vocab_size = start.vocab_size

    def draft(self, context: DraftContext) -> Draft:
        """See :func:`tokcore.ops.draft_trigram.draft_trigram`."""
        assert self._table is not None
        trees = draft_trigram(
            *self._table,
            _before(context),
            context.roots,
            context.budgets.clamp(max=self.max_nodes),
            vocab_size=self._vocab_size,
            max_nodes=self.max_nodes,
            simulations=self.simulations * self.max_nodes,
            max_depth=self.max_depth,
            exploration=self.exploration,
        )
        return Draft(TokenTree(*trees[:3], validate=False), trees.joint)

    def update(self, context: DraftContext, tree: TokenTree, candidates: Candidates | None) -> None:
        """A row for the pair of every node: its parent's token and its own."""
        assert self._table is not None
        assert candidates is not None
        assert candidates.probs is not None
        parents = tree.parents.to(torch.int64)
        above = torch.where(parents < 0, _before(context).unsqueeze(1), tree.tokens.gather(1, parents.clamp(min=0)))
        pairs = torch.stack([torch.where(tree.valid(), above, -1), tree.tokens], -1)
        rows = (candidates.tokens.flatten(0, 1), candidates.probs.flatten(0, 1))
        draft_trigram_update(*self._table, pairs.flatten(0, 1), *rows)


def _before(context: DraftContext) -> Tensor:
    """The token before the root, -1 where the root is the first one."""
    index = context.lengths.to(torch.int64).unsqueeze(1) - 2
    found = context.history.gather(1, index.clamp(min=0)).squeeze(1)
    return torch.where(index.squeeze(1) < 0, -1, found)
