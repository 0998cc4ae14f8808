"""The meaning of ``block_sparse_attention``: scores in full, fp64 unless told otherwise, differentiated by autograd."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tokcore.block_mask import BlockMask


class Attention(NamedTuple):
    """What :func:`tokcore.block_sparse_attention` can return."""

    out: Tensor  # [B, H, M, D]
    lse: Tensor  # [B, H, M]


def visible_elements(
    block_mask: BlockMask | None, shape: tuple[int, int], causal: bool, device: torch.device
) -> Tensor:
    """bool [1 or B, 1 or H, M, N]: the elements that count."""
    M, N = shape
    visible = (
        torch.ones(1, 1, M, N, dtype=torch.bool, device=device) if block_mask is None else block_mask.to_elements()
    )
    if causal:
        keys, queries = torch.arange(N, device=device), torch.arange(M, device=device).unsqueeze(1)
        visible = visible & (keys <= queries + N - M)
    return visible


def scores(q: Tensor, k: Tensor, visible: Tensor, scale: float | None, dtype: torch.dtype = torch.float64) -> Tensor:
    """scale·q·kᵀ [B, H, M, N] in ``dtype``, -inf where nothing counts; each key head serves H/Hkv query heads."""
    factor = 1.0 / math.sqrt(q.size(-1)) if scale is None else scale
    group = q.size(1) // max(k.size(1), 1)
    z = factor * (q.to(dtype) @ k.to(dtype).repeat_interleave(group, 1).transpose(-1, -2))
    return z.masked_fill(~visible, -math.inf)


def attend(z: Tensor, v: Tensor) -> Attention:
    """What follows the scores z [B, H, M, N], in their dtype; a row of -inf gives out = 0 and lse = -inf."""
    # The gradient of logsumexp at a row of -inf is NaN: such rows are computed as zeros and left out.
    empty = (z == -math.inf).all(-1)
    finite = z.masked_fill(empty.unsqueeze(-1), 0.0)
    lse = finite.logsumexp(-1)
    weights = (finite - lse.unsqueeze(-1)).exp().masked_fill(empty.unsqueeze(-1), 0.0)
    values = v.to(z.dtype).repeat_interleave(z.size(1) // max(v.size(1), 1), 1)
    return Attention(weights @ values, lse.masked_fill(empty, -math.inf))


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: BlockMask,
    *,
    scale: float | None = None,
    causal: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Attention:
    """As :func:`tokcore.block_sparse_attention`, in ``dtype``, with both results."""
    visible = visible_elements(block_mask, (q.size(2), k.size(2)), causal, q.device)
    return attend(scores(q, k, visible, scale, dtype), v)
