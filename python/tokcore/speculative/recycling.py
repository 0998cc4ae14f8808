"""Token Recycling: the candidates that verification throws away become the next drafts."""

from __future__ import annotations

import torch
from torch import Tensor

from tokcore.ops.draft_candidates import Candidates
from tokcore.ops.draft_recycling import draft_recycling, draft_recycling_update
from tokcore.speculative.drafter import Draft, DraftContext, DraftStart
from tokcore.speculative.templates import Template, greedy_template
from tokcore.token_tree import TokenTree


class TokenRecycling:
    """Drafts from a table of the likeliest successors that the model named for every token when it last came.

    The table is int32 [V, K], K the template's ranks (8 by default: 1 MB at V = 32768). Node n of the tree is successor
    ``ranks[n]`` of its parent's token. After verification ``table[token of node] = the K likeliest tokens after it``
    for all nodes, accepted or not; where a token stands at several nodes, the last node by index wins. The table stays
    from one generation to the next.

    Args:
        template: :func:`greedy_template` by default, 81 nodes in 6 layers.

    Source: Token Recycling (arXiv 2408.08696); the template is this library's own.
    """

    def __init__(self, template: Template | None = None) -> None:
        self.template = template or greedy_template()
        self.num_candidates = self.template.num_ranks
        self.max_nodes = self.template.num_nodes
        self.table: Tensor | None = None

    def start(self, start: DraftStart) -> None:
        """An empty table, unless there is one already; it knows what followed what in the prompts."""
        device = start.history.device
        if self.table is None or self.table.size(0) != start.vocab_size or self.table.device != device:
            shape = (start.vocab_size, self.num_candidates)
            self.table = torch.full(shape, -1, dtype=torch.int32, device=device)
            parts = (self.template.parents, self.template.ranks)
            self._template = tuple(part.to(device) for part in parts)

    def draft(self, context: DraftContext) -> Draft:
        """The template filled from the table; unknown successors and what hangs on them are left out."""
        assert self.table is not None
        parents, ranks = self._template
        budgets = context.budgets.clamp(max=self.max_nodes)
        trees = draft_recycling(self.table, context.roots, budgets, parents, ranks)
        return Draft(TokenTree(*trees, validate=False))

    def update(
        self,
        context: DraftContext,  # noqa: ARG002 - part of the protocol
        tree: TokenTree,
        candidates: Candidates | None,
    ) -> None:
        """Rewrites the table's rows of the tree's tokens."""
        assert self.table is not None
        assert candidates is not None
        ids = torch.where(tree.valid(), tree.tokens, -1).flatten()
        draft_recycling_update(self.table, ids, candidates.tokens.flatten(0, 1))
