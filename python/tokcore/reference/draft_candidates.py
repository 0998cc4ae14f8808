"""The meaning of ``draft_candidates``."""

from __future__ import annotations

import torch
from torch import Tensor


def draft_candidates(
    logits: Tensor, k: int, *, temperature: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """tokens int32 [R, k] and probs ``dtype`` [R, k] of logits [R, V]; softmax in ``dtype``."""
    rows = logits.to(dtype)
    has_nan = rows.isnan().any(-1, keepdim=True)
    order = torch.where(rows.isnan(), float("-inf"), rows).sort(dim=-1, descending=True, stable=True)
    values, tokens = order.values[:, :k], order.indices[:, :k].to(torch.int32)
    present = (values > float("-inf")) & ~has_nan
    weights = torch.softmax(rows / temperature, -1).gather(-1, order.indices[:, :k])
    probs = torch.where(present, weights, 0.0)
    return torch.where(present, tokens, -1), torch.where(has_nan, float("nan"), probs)
