"""Helpers of the tests of sampling and verification."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_Z = 5.998  # a standard normal number exceeds it with probability 1e-9


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exceeds(counts: Tensor, p: Tensor) -> bool:
    """Whether Pearson's statistic of counts against probabilities lies beyond its quantile of 1 - 1e-9.

    Cells of fewer than five expected are put together. The quantile is Wilson's and Hilferty's.
    """
    expected = p.double() * float(counts.sum())
    small = expected < 5.0
    observed = torch.cat([counts[~small].double(), counts[small].double().sum().reshape(1)])
    wanted = torch.cat([expected[~small], expected[small].sum().reshape(1)])
    if float(wanted[-1]) < 1e-9:
        if float(observed[-1]) > 0.0:
            return True  # what cannot happen has happened
        observed, wanted = observed[:-1], wanted[:-1]
    statistic = float(((observed - wanted).square() / wanted).sum())
    degrees = len(wanted) - 1
    spread = 2.0 / (9.0 * degrees)
    return statistic > degrees * (1.0 - spread + _Z * math.sqrt(spread)) ** 3
