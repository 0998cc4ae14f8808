"""The meaning of ``draft_samples``: a row's distribution and noise as :mod:`tokcore.reference.sampling` makes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokcore.reference.sample import of_request, rows_of
from tokcore.reference.sampling import DRAFTS, TOKENS, Row, log2, token_noise


def draft_probs(row: Row) -> Tensor:
    """q, float32 [V]: 0 where whole numbers of 2^-bits would be 0."""
    shares = (torch.tensor(row.weights, dtype=torch.float64) / float(row.mass)).to(torch.float32)
    return torch.where(shares.to(torch.float64) < 2.0**-row.bits, 0.0, shares)


def _ranked(scores: Tensor, k: int) -> list[int]:
    """The k greatest above -inf, of equal ones the first."""
    order = scores.sort(descending=True, stable=True)
    return [int(token) for token, score in zip(order.indices[:k], order.values[:k], strict=True) if score > -torch.inf]


def _drawn(row: Row, k: int, children: str, seed: int, position: int) -> list[int]:
    V = len(row.weights)
    if children == "coupled":
        if row.greedy:
            return [row.weights.index(row.mass)]
        scores = -row.distance + token_noise(seed, position, V, TOKENS)
        return _ranked(torch.where(row.kept, scores, -torch.inf), k)
    q = draft_probs(row).to(torch.float64)
    logs = torch.where(q > 0.0, log2(torch.where(q > 0.0, q, 1.0)), -torch.inf)
    if children == "without_replacement":
        return _ranked(logs + token_noise(seed, position, V, DRAFTS), k)
    return [_ranked(logs + token_noise(seed, position, V, DRAFTS + i), 1)[0] for i in range(k)]


def draft_samples(
    logits: Tensor, k: int, *, seed: Any, position: Any, children: str = "coupled", **options: Any
) -> dict[str, Tensor]:
    """As the operator, with the names of its result."""
    rows = rows_of(logits, **options)
    R, V = logits.shape
    tokens, probs = torch.full((R, k), -1, dtype=torch.int32), torch.zeros(R, k)
    q = torch.zeros(R, V)
    for r, row in enumerate(rows):
        q[r] = draft_probs(row)
        found = _drawn(row, k, children, of_request(seed, r), of_request(position, r))
        tokens[r, : len(found)] = torch.tensor(found, dtype=torch.int32)
        exact = torch.tensor([row.weights[token] / float(row.mass) for token in found], dtype=torch.float32)
        probs[r, : len(found)] = exact if children == "coupled" else q[r, found]
    result = {"tokens": tokens, "probs": probs}
    return result if children == "coupled" else {**result, "draft_probs": q}
