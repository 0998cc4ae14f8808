"""A draft model that is asked at the nodes of a growing tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokcore.ops._draft_checks import MOST_NODES
from tokcore.ops.draft_samples import draft_samples
from tokcore.speculative.drafter import DraftContext, DraftStart, Draws
from tokcore.speculative.model import CacheOptions, Session, SpeculativeModel
from tokcore.token_tree import TokenTree
from tokcore.verdict import Verdict

MOST_CHAINED = 16  # tokens since the last draft that ride along as a chain; more are read first
OWN_NOISE = 40  # bits that positions leave to the numbers of asked nodes: nodes share no noise, steps neither


class DraftModel:
    """What a draft model said about a step's tree, and how it is asked for more.

    Every question is one forward pass over all nodes asked so far, after which the model's cache again holds what comes
    before the root: so it needs nothing but trees and compaction. The tokens accepted since the last draft are put
    before the root in the first question.
    """

    def __init__(self, model: SpeculativeModel, children: int, cache: CacheOptions = None) -> None:
        self.model, self.children, self.cache = model, children, cache

    def start(self, start: DraftStart) -> None:
        """A session of the draft model with an empty cache."""
        batch = start.history.size(0)
        room = start.capacity + MOST_CHAINED
        self.session: Session = self.model.session(batch, room, self.cache)

    def begin(self, context: DraftContext, draws: Draws | None = None) -> None:
        """Asks at the root of every request with a budget; with ``draws`` candidates are drawn as its rule wants."""
        self.draws, self.positions = draws, context.lengths.to(torch.int64)
        lengths, cached = context.lengths.tolist(), self.session.lengths.tolist()
        history = context.history
        self.device = history.device
        active = [budget > 0 for budget in context.budgets.tolist()]
        behind = [
            max(0, length - 1 - have) if on else 0 for length, have, on in zip(lengths, cached, active, strict=True)
        ]
        if max(behind, default=0) > MOST_CHAINED:
            rows = [history[b, cached[b] : cached[b] + behind[b]] for b in range(len(behind))]
            padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            self.session.append(padded, torch.tensor(behind, dtype=torch.int32, device=self.device))
            behind = [0] * len(behind)
        self.chains = [
            history[b, length - 1 - behind[b] : length].tolist() if active[b] else []
            for b, length in enumerate(lengths)
        ]
        shape = (len(lengths), MOST_NODES, self.children)
        self.candidates = torch.full(shape, -1, dtype=torch.int32, device=self.device)
        self.probs = torch.zeros(shape, device=self.device)
        self.draft_probs: list[Tensor] = []  # float32 [R, V] by question
        self.draft_rows = torch.full(shape[:2], -1, device=self.device)  # of an asked node in them
        self.parents: list[list[int]] = [[] for _ in lengths]
        self.ranks: list[list[int]] = [[] for _ in lengths]
        self.tokens: list[list[int]] = [[] for _ in lengths]
        self._ask([[(-1, 0, chain[-1])] if chain else [] for chain in self.chains])

    def ask(self, children: Sequence[Sequence[tuple[int, int]]]) -> None:
        """Asks at new nodes: by request the asked node above and which of its candidates."""
        self._ask(
            [
                [(parent, rank, int(self.candidates[b, parent, rank])) for parent, rank in new]
                for b, new in enumerate(children)
            ]
        )

    def room(self, request: int) -> int:
        """How many more nodes can be asked at."""
        return MOST_NODES - len(self.chains[request]) - len(self.parents[request])

    def asked(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """candidates, probs, asked_parents, asked_ranks, asked_counts of ``draft_heap``."""
        counts = [len(parents) for parents in self.parents]
        width = max(1, *counts)
        parents, ranks = (
            torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.int32, device=self.device)
            for rows in (self.parents, self.ranks)
        )
        candidates, probs = self.candidates[:, :width], self.probs[:, :width]
        return candidates, probs, parents, ranks, torch.tensor(counts, dtype=torch.int32, device=self.device)

    def _ask(self, new: Sequence[Sequence[tuple[int, int, int]]]) -> None:
        starts = [len(parents) for parents in self.parents]
        for b, nodes in enumerate(new):
            for parent, rank, token in nodes:
                self.parents[b].append(parent)
                self.ranks[b].append(rank)
                self.tokens[b].append(token)
        tree = self._tree()
        hidden = self.session.forward(tree)
        places = [
            (b, len(self.chains[b]) - 1 + node, node)
            for b, start in enumerate(starts)
            for node in range(start, len(self.parents[b]))
        ]
        rows, where, asked = (torch.tensor(part, device=self.device) for part in zip(*places, strict=True))
        self.candidates[rows, asked], self.probs[rows, asked] = self._candidates(hidden[rows, where], rows, asked)
        kept = [max(0, len(chain) - 1) for chain in self.chains]
        self.session.compact(tree, _keep_first(kept, self.device))
        self.chains = [chain[-1:] for chain in self.chains]

    def _candidates(self, hidden: Tensor, rows: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest tokens, or drawn ones, with their probabilities."""
        if self.draws is None:
            found = self.session.top(hidden, self.children)
            assert found.probs is not None
            return found.tokens, found.probs
        coupled = self.draws.rule == "coupled"
        depths = torch.tensor([self._depth(b, node) for b, node in zip(rows.tolist(), asked.tolist(), strict=True)])
        noise = depths.to(asked) if coupled else asked << OWN_NOISE
        options: dict[str, Any] = {
            name: value[rows] if isinstance(value, Tensor) else value for name, value in self.draws.options.items()
        }
        drawn = draft_samples(
            self.session.logits(hidden),
            self.children,
            seed=self.draws.seeds[rows],
            position=self.positions[rows] + noise,
            children=self.draws.rule,
            **options,
        )
        if drawn.draft_probs is not None:
            first = sum(part.size(0) for part in self.draft_probs)
            self.draft_rows[rows, asked] = torch.arange(first, first + rows.numel(), device=self.device)
            self.draft_probs.append(drawn.draft_probs)
        return drawn.tokens, drawn.probs

    def probs_of(self, sources: Tensor) -> Tensor | None:
        """What the children of nodes [B, N] were drawn from, float32 [B, N, V]; ``sources``: asked nodes, or -1."""
        if not self.draft_probs:
            return None
        table = torch.cat(self.draft_probs)
        rows = self.draft_rows.gather(1, sources.to(torch.int64).clamp(min=0))
        return torch.where((sources >= 0).unsqueeze(-1), table[rows], 0.0)

    def _depth(self, request: int, node: int) -> int:
        depth = 0
        while node > 0:
            node, depth = self.parents[request][node], depth + 1
        return depth

    def _tree(self) -> TokenTree:
        """The chain down to the root, then every asked node."""
        tokens, parents = [], []
        for b, chain in enumerate(self.chains):
            before = len(chain) - 1
            tokens.append([*chain[:-1], *self.tokens[b]])
            above = [before + parent for parent in self.parents[b][1:]]
            parents.append([*range(-1, before), *above] if chain else [])
        width = max(1, *map(len, tokens))
        counts = [len(row) for row in tokens]
        return TokenTree(
            torch.tensor([row + [-1] * (width - len(row)) for row in parents], dtype=torch.int32, device=self.device),
            torch.tensor([row + [0] * (width - len(row)) for row in tokens], device=self.device),
            counts,
        )


def _keep_first(counts: Sequence[int], device: torch.device) -> Verdict:
    """A verdict that keeps the first nodes of a chain."""
    most = max(1, *counts)
    nodes = [[*range(count), *[-1] * (most - count)] for count in counts]
    return Verdict(
        torch.tensor(nodes, dtype=torch.int32, device=device),
        torch.tensor(counts, dtype=torch.int32, device=device),
        torch.full((len(counts),), -1, device=device),
    )
