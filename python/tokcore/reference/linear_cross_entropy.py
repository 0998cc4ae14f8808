"""The meaning of ``linear_cross_entropy``: logits in full, fp64 unless told otherwise, differentiated by autograd."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokcore.reference.linear_logprobs import entropy_filter_eps, logits, lse_and_entropy


class LinearCrossEntropy(NamedTuple):
    """Everything :func:`tokcore.linear_cross_entropy` can return, but for the filter rate."""

    loss: Tensor  # 0-d, or the shape of targets[..., shift:] for "none"
    lse: Tensor  # shape of targets[..., shift:]
    entropy: Tensor


def linear_cross_entropy(
    e: Tensor,
    c: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    reduction: str = "mean",
    shift: bool | int = 0,
    *,
    filter_eps: float | None = None,
    class_weight: Tensor | None = None,
    token_weight: Tensor | None = None,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_entropy: bool = False,
    dtype: torch.dtype = torch.float64,
) -> LinearCrossEntropy:
    """As :func:`tokcore.linear_cross_entropy` with ``filter_eps`` as a number, in ``dtype``.

    ``return_entropy`` only lowers the filter's threshold, as it does there; the entropy is computed in any case.
    """
    offset = int(shift)
    rows = e[..., : e.size(-2) - offset, :] if offset else e
    return loss_of_logits(
        logits(rows, c, bias, softcap=softcap, temperature=temperature, dtype=dtype),
        targets[..., offset:] if offset else targets,
        ignore_index,
        reduction,
        filter_eps=filter_eps,
        class_weight=class_weight,
        token_weight=token_weight if token_weight is None or not offset else token_weight[..., offset:],
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        return_entropy=return_entropy,
    )


def loss_of_logits(
    z: Tensor,
    targets: Tensor,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    filter_eps: float | None = None,
    class_weight: Tensor | None = None,
    token_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_entropy: bool = False,
) -> LinearCrossEntropy:
    """What follows the logits z [..., V], in their dtype; positions are paired already."""
    vocabulary = z.size(-1)
    active = targets != ignore_index
    labels = torch.where(active, targets, 0)
    if return_entropy and filter_eps is not None:
        filter_eps = entropy_filter_eps(filter_eps, vocabulary)
    lse, entropy = lse_and_entropy(z, filter_eps)
    w = z.new_ones(vocabulary) if class_weight is None else class_weight.to(z.dtype)

    nll = lse - z.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    loss = (1.0 - label_smoothing) * w[labels] * nll
    if label_smoothing > 0.0:
        loss = loss + label_smoothing / vocabulary * (w * (lse.unsqueeze(-1) - z)).sum(-1)
    if z_loss > 0.0:
        loss = loss + z_loss * lse.square()
    if token_weight is not None:
        loss = loss * token_weight.to(z.dtype)
    loss = torch.where(active, loss, 0.0)
    if reduction == "mean":
        loss = loss.sum() / torch.where(active, w[labels], 0.0).sum()
    elif reduction == "sum":
        loss = loss.sum()
    return LinearCrossEntropy(loss, torch.where(active, lse, 0.0), torch.where(active, entropy, 0.0))
