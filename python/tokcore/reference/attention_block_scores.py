"""The meaning of ``attention_block_scores``: the attention matrix in full, fp64 unless told otherwise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokcore.reference.block_sparse_attention import scores, visible_elements


def attention_block_scores(
    q: Tensor,
    k: Tensor,
    *,
    block: tuple[int, int] = (64, 64),
    scale: float | None = None,
    causal: bool = False,
    stat: str = "sum",
    threshold: float = 1e-3,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """As :func:`tokcore.attention_block_scores`, in ``dtype``."""
    visible = visible_elements(None, (q.size(2), k.size(2)), causal, q.device)
    return scores_of_logits(scores(q, k, visible, scale, dtype), visible, block, stat, threshold)


def scores_of_logits(z: Tensor, visible: Tensor, block: tuple[int, int], stat: str, threshold: float) -> Tensor:
    """What follows the scores z [B, H, M, N], -inf where nothing counts."""
    lse = z.logsumexp(-1, keepdim=True)
    # A row without any element that counts has no weights.
    logs = torch.where(lse == -math.inf, -math.inf, z - lse)
    if stat == "incoherence":
        # Of logarithms relative to the greatest of the block, so that a block of tiny weights has its quotient too.
        greatest = _blocks(logs, block, -math.inf).amax(-1)
        relative = _blocks(logs, block, -math.inf) - greatest.unsqueeze(-1)
        counted = _blocks(visible.expand(z.shape).to(z.dtype), block, 0.0).sum(-1)
        return torch.where(counted > 0, counted / relative.exp().sum(-1), 0.0)
    weights = _blocks(logs.exp(), block, 0.0)
    if stat == "sum":
        return weights.sum(-1)
    if stat == "max":
        return weights.amax(-1)
    return (weights > threshold).sum(-1).to(z.dtype)


def _blocks(x: Tensor, block: tuple[int, int], fill: float) -> Tensor:
    """[B, H, M, N] -> [B, H, ceil(M/bm), ceil(N/bn), bm·bn], ragged blocks filled up."""
    rows, columns = -(-x.size(-2) // block[0]), -(-x.size(-1) // block[1])
    padding = (0, columns * block[1] - x.size(-1), 0, rows * block[0] - x.size(-2))
    padded = torch.nn.functional.pad(x, padding, value=fill)
    return padded.view(*x.shape[:2], rows, block[0], columns, block[1]).transpose(3, 4).flatten(-2)
