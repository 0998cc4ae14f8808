"""Drafters with a smaller model: DySpec's heap, Eagle-2's beam, and a fixed template."""

from __future__ import annotations

import torch
from torch import Tensor

from tokcore.ops._draft_checks import MOST_NODES
from tokcore.ops.draft_candidates import Candidates
from tokcore.ops.draft_heap import HeapTrees, draft_heap
from tokcore.speculative.draft_model import DraftModel
from tokcore.speculative.drafter import Draft, DraftContext, DraftStart
from tokcore.speculative.model import CacheOptions, SpeculativeModel
from tokcore.speculative.policies import LengthPolicy
from tokcore.speculative.templates import Template, greedy_template
from tokcore.token_tree import TokenTree

Children = list[list[tuple[int, int]]]  # by request: the asked node above, and the rank


class _ModelDrafter:
    """A draft model is asked a layer at a time; its own cache is kept in step with the text."""

    num_candidates = 0
    draws_for: tuple[str, ...] = ("coupled", "without_replacement")
    """Rules that it draws children for; for others they are the likeliest tokens."""

    def __init__(self, model: SpeculativeModel, max_nodes: int, children: int, cache: CacheOptions) -> None:
        self.max_nodes, self.children = max_nodes, children
        self._asking = DraftModel(model, children, cache)

    def start(self, start: DraftStart) -> None:
        """A session of the draft model."""
        self._asking.start(start)

    def draft(self, context: DraftContext) -> Draft:
        """One question to the draft model a layer; none where the budgets leave no room for drafts."""
        budgets = context.budgets.clamp(max=self.max_nodes)
        if not bool((budgets > 1).any()):
            roots = context.roots.unsqueeze(1)
            return Draft(TokenTree(torch.full_like(roots, -1, dtype=torch.int32), roots, budgets, validate=False))
        draws = context.draws if context.draws is not None and context.draws.rule in self.draws_for else None
        self._asking.begin(DraftContext(context.history, context.lengths, context.roots, budgets), draws)
        return self._build(context.roots, budgets)

    def update(self, context: DraftContext, tree: TokenTree, candidates: Candidates | None) -> None:
        """Nothing yet: the draft model reads what was accepted when it drafts again."""

    def _build(self, roots: Tensor, budgets: Tensor) -> Draft:
        raise NotImplementedError

    def _drafted(self, tree: TokenTree, joint: Tensor, sources: Tensor) -> Draft:
        draws = self._asking.draws
        return Draft(tree, joint, "fixed" if draws is None else draws.rule, self._asking.probs_of(sources))

    def _heap(self, roots: Tensor, budgets: Tensor, value: str, threshold: float = 0.0) -> HeapTrees:
        asked = self._asking.asked()
        most = max(1, int(budgets.max()))
        return draft_heap(*asked, roots, budgets, max_nodes=most, value=value, threshold=threshold)

    def _unasked(self, trees: HeapTrees) -> list[list[tuple[int, float, tuple[int, int]]]]:
        """By request the nodes at which the model was not asked, best first: depth, product, place."""
        parents, sources = trees.parents.to(torch.int64).clamp(min=0), trees.sources.to(torch.int64)
        above = sources.gather(1, parents)
        rows = torch.arange(sources.size(0), device=sources.device).unsqueeze(1)
        ranks = (self._asking.candidates[rows, above] == trees.tokens.unsqueeze(-1)).int().argmax(-1)
        depths = TokenTree(*trees[:3], validate=False).depths()
        columns = (depths, trees.joint, above, ranks, sources)
        found = []
        for count, *parts in zip(trees.counts.tolist(), *(column.tolist() for column in columns), strict=True):
            nodes = list(zip(*parts, strict=True))[:count]
            found.append([(depth, joint, (up, rank)) for depth, joint, up, rank, source in nodes if source < 0])
        return found


class DySpec(_ModelDrafter):
    """The tree that a heap over the draft model's probabilities grows, best node first.

    A node's value is the chance that the nodes above it are kept and the siblings before it are not; siblings are the
    model's likeliest tokens in order, or drawn. Each round asks the draft model at all nodes that entered the tree, in
    one batch, until none enters: the heap's tree exactly, in as many questions as it has layers.

    Args:
        model: the draft model; its vocabulary is the target's.
        max_nodes: of a tree, in [1, 256].
        children: most children of a node, in [1, 64].
        max_depth: layers below the root.
        threshold: nodes of a lower value are left out (DySpec's threshold variant); 0: the budget alone decides.
        policy: paths are followed only as far as it says; None: to ``max_depth``.
        cache: of the draft model.

    Where tokens are drawn, siblings are too, in the order of drawing: with the target's noise for the rule "coupled",
    one after the other from what remains of q for "without_replacement", DySpec's own: as a value depends on the
    siblings before a node and not on the node, that is lossless. For other rules siblings are the likeliest tokens.
    Source: DySpec (arXiv 2410.11744).
    """

    def __init__(
        self,
        model: SpeculativeModel,
        max_nodes: int = 32,
        *,
        children: int = 8,
        max_depth: int = 6,
        threshold: float = 0.0,
        policy: LengthPolicy | None = None,
        cache: CacheOptions = None,
    ) -> None:
        super().__init__(model, max_nodes, children, cache)
        self.max_depth, self.threshold, self.policy = max_depth, threshold, policy

    def _build(self, roots: Tensor, budgets: Tensor) -> Draft:
        while True:
            trees = self._heap(roots, budgets, "residual", self.threshold)
            new: Children = [
                [place for depth, joint, place in nodes if self._grows(depth, joint)][: self._asking.room(b)]
                for b, nodes in enumerate(self._unasked(trees))
            ]
            if not any(new):
                return self._drafted(TokenTree(*trees[:3], validate=False), trees.joint, trees.sources)
            self._asking.ask(new)

    def _grows(self, depth: int, joint: float) -> bool:
        return depth < self.max_depth and (self.policy is None or self.policy.grows(depth, joint))


class Eagle(_ModelDrafter):
    """Eagle-2's tree: a beam by the product of draft probabilities, then the best nodes of all layers.

    Layer by layer the ``beam`` nodes of the greatest product are asked at; of all their children the ``max_nodes``
    with the greatest product make the tree.

    Args:
        model, max_nodes, children, cache: as of :class:`DySpec`.
        beam: nodes of a layer at which the model is asked.
        max_depth: layers below the root.
        policy: a node that it stops at leaves the beam.

    Where tokens are drawn by the rule "coupled", siblings are drawn with the target's noise; otherwise they are the
    likeliest tokens. Any causal draft model serves; Eagle's own reads the target's hidden states. Source: Eagle-2
    (arXiv 2406.16858).
    """

    draws_for = ("coupled",)  # its values tell of the node itself: a rule that tests q would not be lossless

    def __init__(
        self,
        model: SpeculativeModel,
        max_nodes: int = 32,
        *,
        beam: int = 8,
        children: int = 8,
        max_depth: int = 5,
        policy: LengthPolicy | None = None,
        cache: CacheOptions = None,
    ) -> None:
        super().__init__(model, max_nodes, children, cache)
        self.beam, self.max_depth, self.policy = beam, max_depth, policy

    def _build(self, roots: Tensor, budgets: Tensor) -> Draft:
        wide = torch.where(budgets > 0, MOST_NODES, 0).to(torch.int32)
        for layer in range(1, self.max_depth):
            found = self._unasked(self._heap(roots, wide, "joint"))
            new: Children = [
                [place for depth, joint, place in nodes if depth == layer and self._grows(depth, joint)][
                    : min(self.beam, self._asking.room(b))
                ]
                for b, nodes in enumerate(found)
            ]
            if not any(new):
                break
            self._asking.ask(new)
        trees = self._heap(roots, budgets, "joint")
        return self._drafted(TokenTree(*trees[:3], validate=False), trees.joint, trees.sources)

    def _grows(self, depth: int, joint: float) -> bool:
        return self.policy is None or self.policy.grows(depth, joint)


class StaticTree(_ModelDrafter):
    """A fixed template filled with the draft model's likeliest tokens, as Medusa's, or with drawn ones, as SpecInfer's.

    Args:
        model, cache: as of :class:`DySpec`.
        template: whose node n is candidate ``ranks[n]`` of its parent; :func:`greedy_template` of 16 nodes by default.
            A budget takes its first nodes.

    Where tokens are drawn, siblings are too: as of :class:`DySpec`, and independently for the rule "iid".
    """

    draws_for = ("coupled", "without_replacement", "iid")

    def __init__(
        self, model: SpeculativeModel, template: Template | None = None, *, cache: CacheOptions = None
    ) -> None:
        self.template = template or greedy_template(16, 4)
        super().__init__(model, self.template.num_nodes, self.template.num_ranks, cache)

    def _build(self, roots: Tensor, budgets: Tensor) -> Draft:
        parents, ranks, depths = (
            part.tolist() for part in (self.template.parents, self.template.ranks, self.template.depths)
        )
        limits = budgets.tolist()
        asked: list[dict[int, int]] = [{0: 0} for _ in limits]  # template's node -> asked node
        for layer in range(1, max(depths, default=0)):
            new: Children = []
            for b, limit in enumerate(limits):
                inner = {parents[node] for node in range(1, limit)}
                nodes = [node for node in range(1, limit) if depths[node] == layer and node in inner]
                known = self._asking.candidates[b].tolist() if nodes else []
                nodes = [
                    node
                    for node in nodes
                    if parents[node] in asked[b] and known[asked[b][parents[node]]][ranks[node]] >= 0
                ]
                new.append([(asked[b][parents[node]], ranks[node]) for node in nodes])
                first = len(asked[b])
                asked[b] |= {node: first + i for i, node in enumerate(nodes)}
            if any(new):
                self._asking.ask(new)
        return self._fill(roots, limits, asked, parents, ranks)

    def _fill(
        self, roots: Tensor, limits: list[int], asked: list[dict[int, int]], parents: list[int], ranks: list[int]
    ) -> Draft:
        width = max(1, *limits)
        tree_parents = torch.full((len(limits), width), -1, dtype=torch.int32)
        tokens, joint = torch.zeros(len(limits), width, dtype=torch.int64), torch.zeros(len(limits), width)
        sources = torch.full((len(limits), width), -1)
        counts = []
        for b, (limit, root) in enumerate(zip(limits, roots.tolist(), strict=True)):
            candidates, probs = self._asking.candidates[b].tolist(), self._asking.probs[b].tolist()
            place = {0: 0}  # template's node -> node
            for node in range(limit):
                if node == 0:
                    tokens[b, 0], joint[b, 0], sources[b, 0] = root, 1.0, 0
                    continue
                above = parents[node]
                token = candidates[asked[b][above]][ranks[node]] if above in asked[b] else -1
                if token < 0:
                    continue
                at = len(place)
                tree_parents[b, at], tokens[b, at] = place[above], token
                joint[b, at] = joint[b, place[above]] * probs[asked[b][above]][ranks[node]]
                sources[b, at] = asked[b].get(node, -1)
                place[node] = at
            counts.append(len(place) if limit else 0)
        device = roots.device
        tree = TokenTree(tree_parents.to(device), tokens.to(device), counts)
        return self._drafted(tree, joint.to(device), sources.to(device))
