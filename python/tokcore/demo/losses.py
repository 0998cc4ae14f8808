"""The three losses that the demo trains with, from hidden states e [T, C], a classifier c [V, C] and targets [T]."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

import tokcore

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def tokcore_loss(e: Tensor, c: Tensor, targets: Tensor) -> Tensor:
    """Exact tokcore loss: no logits in memory, no gradient filter."""
    loss = tokcore.linear_cross_entropy(e, c, targets, filter_eps=None)
    assert isinstance(loss, Tensor)  # a tuple only when further outputs are asked for
    return loss


def eager_loss(e: Tensor, c: Tensor, targets: Tensor) -> Tensor:
    """``F.linear`` and ``F.cross_entropy``, logits in the dtype of e.

    The mean over tokens is taken in fp32: in bf16 it would show the loss in steps of 1/32.
    """
    return F.cross_entropy(F.linear(e, c), targets, reduction="none").float().mean()


def eager_upcast_loss(e: Tensor, c: Tensor, targets: Tensor) -> Tensor:
    """Eager with its operands upcast to fp32: the same function, its logits not rounded to bf16.

    An equally valid rounding, and the one that tokcore's logits have too.
    """
    return F.cross_entropy(F.linear(e.float(), c.float()), targets)


LOSSES: Mapping[str, Loss] = {"tokcore": tokcore_loss, "eager": eager_loss, "eager upcast": eager_upcast_loss}
