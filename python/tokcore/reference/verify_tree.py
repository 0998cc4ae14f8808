"""The meaning of ``verify_tree_sample`` and ``verify_tree_greedy``: what each rule does at a node, and the way down.

A rule at a node is a list of tests, each of a child and conditional on the ones before having failed, and the weights
that are drawn from when all have failed. So the same lines serve a walk with random numbers and an exact enumeration of
everything that can happen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokcore.reference.sample import of_request, settings_of
from tokcore.reference.sampling import (
    ACCEPTS,
    DRAWS,
    Row,
    allowed_tokens,
    draw,
    make_row,
    random_bits,
    scaled_exp2,
    unit_interval,
)

RULES = ("coupled", "without_replacement", "iid", "target_only", "typical")


@dataclass(frozen=True)
class Test:
    """A child is accepted if r * weighted < accepted, r uniform in [0, 1)."""

    child: int  # which of the children
    weighted: tuple[float, ...]  # factors, multiplied with r from left to right
    accepted: float

    def accepts(self, r: float) -> bool:
        """With this r."""
        for factor in self.weighted:
            r = r * factor
        return r < self.accepted

    def probability(self) -> float:
        """Over all r."""
        bound = math.prod(self.weighted)
        return min(self.accepted / bound, 1.0) if bound > 0.0 else float(self.accepted > 0.0)


def plan(rule: str, row: Row, children: Sequence[int], q: Sequence[float] | None) -> tuple[list[Test], list[int]]:
    """The tests of a node's children, given by their tokens, and the weights of the draw after them."""
    if rule == "target_only":
        return _target_only(row, children)
    if rule in ("iid", "without_replacement") and children:
        assert q is not None
        return _against_draft(row, children, q, replaces=rule == "iid")
    return [], row.weights


def _target_only(row: Row, children: Sequence[int]) -> tuple[list[Test], list[int]]:
    left, tests = list(row.weights), []
    for i, token in enumerate(children):
        if token not in children[:i]:
            tests.append(Test(i, (float(sum(left)),), float(left[token])))
            if not row.greedy:
                left[token] = 0
    return tests, left


def _against_draft(
    row: Row, children: Sequence[int], probabilities: Sequence[float], replaces: bool
) -> tuple[list[Test], list[int]]:
    unit = 2.0**row.bits
    q = [round(x * unit) for x in probabilities]
    drafted, draft_left = sum(q), sum(q)
    weights, mass, factor = row.weights, row.mass, 0.0
    tests = []
    for i, token in enumerate(children):
        if not replaces and token in children[:i]:
            continue
        if draft_left == 0:
            break
        tests.append(Test(i, (float(q[token]), float(mass)), float(weights[token]) * float(draft_left)))
        scale = 1.0 if factor == 0.0 else float(mass) / unit
        raised = factor + scale * (float(drafted) / float(draft_left))
        residual = [
            round(max(float(w) / float(row.mass) - raised * (float(x) / float(drafted)), 0.0) * unit)
            for w, x in zip(row.weights, q, strict=True)
        ]
        if sum(residual) != 0:
            weights, mass, factor = residual, sum(residual), raised
        if not replaces:
            draft_left -= q[token]
    return tests, weights


def typical_child(row: Row, children: Sequence[int], epsilon: float, alpha: float) -> int:
    """The likeliest child with p > min(epsilon, alpha * e^-entropy), of equal ones the first; -1 for none."""
    decay = scaled_exp2(torch.tensor([-row.entropy() * 1.4426950408889634], dtype=torch.float64), 50)
    threshold = min(alpha * (float(decay) * 2.0**-50), epsilon) * float(row.mass)
    found, greatest = -1, 0
    for i, token in enumerate(children):
        if row.weights[token] > greatest and float(row.weights[token]) > threshold:
            found, greatest = i, row.weights[token]
    return found


def verify_tree_sample(
    logits: Tensor,
    tokens: Tensor,
    parents: Tensor,
    counts: Tensor,
    *,
    rule: str = "coupled",
    seed: Any,
    position: Any,
    draft_probs: Tensor | None = None,
    typical_epsilon: float = 0.3,
    typical_alpha: float = 0.09,
    **options: Any,
) -> dict[str, Tensor]:
    """As :func:`tokcore.verify_tree_sample` on the tensors of a tree, with the names of its result."""
    B, N, V = logits.shape
    paths: list[list[int]] = []
    next_tokens = []
    for b in range(B):
        if int(counts[b]) == 0:
            paths.append([])
            next_tokens.append(-1)
            continue
        tree, links = tokens[b].tolist(), parents[b, : int(counts[b])].tolist()
        place, key, path = int(of_request(position, b)), int(of_request(seed, b)), [0]
        while True:
            node = path[-1]
            below = [child for child, parent in enumerate(links) if parent == node and child > 0]
            seen = options["token_counts"][b].clone() if options.get("token_counts") is not None else None
            for other in path[1:]:
                if seen is not None:
                    seen[tree[other]] += 1
            words = options.get("allowed_bits")
            row = make_row(
                logits[b, node],
                settings_of(options, b),
                seen,
                None if words is None else allowed_tokens(words[b, node], V),
            )
            here = [tree[child] for child in below]
            q = None if draft_probs is None else draft_probs[b, node].double().tolist()
            chosen, token = _step(rule, row, here, below, q, key, place, (typical_epsilon, typical_alpha))
            if chosen < 0:
                break
            path.append(below[chosen])
            place += 1
        paths.append(path)
        next_tokens.append(token)
    return result_of(paths, next_tokens, N)


def _step(
    rule: str,
    row: Row,
    tokens: Sequence[int],
    nodes: Sequence[int],
    q: Sequence[float] | None,
    seed: int,
    position: int,
    typical: tuple[float, float],
) -> tuple[int, int]:
    """Which child is accepted, or -1 and the token that is drawn."""
    if rule == "coupled":
        token = row.coupled_token(seed, position)
        return (tokens.index(token), -1) if token in tokens else (-1, token)
    if rule == "typical":
        found = typical_child(row, tokens, *typical)
        return (found, -1) if found >= 0 else (-1, row.coupled_token(seed, position))
    tests, weights = plan(rule, row, tokens, q)
    for test in tests:
        if test.accepts(unit_interval(random_bits(seed, ACCEPTS, nodes[test.child], position))):
            return test.child, -1
    return -1, draw(weights, random_bits(seed, DRAWS, 0, position))


def verify_tree_greedy(target_tokens: Tensor, tokens: Tensor, parents: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """As :func:`tokcore.verify_tree_greedy`, by what the target says after each node: int64 [B, N]."""
    paths, next_tokens = [], []
    for b in range(tokens.size(0)):
        links, path = parents[b, : int(counts[b])].tolist(), [0] if counts[b] else []
        while path:
            token = int(target_tokens[b, path[-1]])
            below = [c for c, parent in enumerate(links) if parent == path[-1] and c > 0 and tokens[b, c] == token]
            if not below:
                break
            path.append(below[0])
        paths.append(path)
        next_tokens.append(int(target_tokens[b, path[-1]]) if path else -1)
    return result_of(paths, next_tokens, tokens.size(1))


def result_of(paths: Sequence[Sequence[int]], next_tokens: Sequence[int], N: int) -> dict[str, Tensor]:
    """Paths and tokens as a Verdict holds them."""
    padded = [[*path, *[-1] * (N - len(path))] for path in paths]
    return {
        "accepted_nodes": torch.tensor(padded, dtype=torch.int32).reshape(len(paths), N),
        "accepted_counts": torch.tensor([len(path) for path in paths], dtype=torch.int32),
        "next_token": torch.tensor(next_tokens, dtype=torch.int64),
    }
