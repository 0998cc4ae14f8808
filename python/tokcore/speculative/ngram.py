"""N-gram lookup: the text so far is its own drafter."""

from __future__ import annotations

from tokcore.ops.draft_candidates import Candidates
from tokcore.ops.draft_ngram import draft_ngram
from tokcore.speculative.drafter import Draft, DraftContext, DraftStart
from tokcore.token_tree import TokenTree


class NGram:
    """Drafts what followed the last tokens wherever they stood before, prompt included.

    Args:
        max_nodes: of a tree, in [1, 256].
        longest, shortest: lengths of the n-grams that are looked up, the longest first.
        max_depth: tokens taken from one place.

    Source: prompt lookup decoding; all places share one tree.
    """

    num_candidates = 0

    def __init__(self, max_nodes: int = 16, longest: int = 4, shortest: int = 1, max_depth: int = 8) -> None:
        self.max_nodes, self.longest, self.shortest, self.max_depth = max_nodes, longest, shortest, max_depth

    def start(self, start: DraftStart) -> None:
        """Nothing is kept between steps."""

    def draft(self, context: DraftContext) -> Draft:
        """See :func:`tokcore.ops.draft_ngram.draft_ngram`."""
        trees = draft_ngram(
            context.history,
            context.lengths,
            context.budgets.clamp(max=self.max_nodes),
            max_nodes=self.max_nodes,
            longest=self.longest,
            shortest=self.shortest,
            max_depth=self.max_depth,
        )
        return Draft(TokenTree(*trees, validate=False))

    def update(self, context: DraftContext, tree: TokenTree, candidates: Candidates | None) -> None:
        """Nothing is learnt: the history has it."""
