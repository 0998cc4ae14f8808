"""The meaning of ``linear_logprobs``: logits in full, fp64 unless told otherwise, differentiated by autograd."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokcore.ops.linear_logprobs import LinearLogprobs


def logits(
    e: Tensor,
    c: Tensor,
    bias: Tensor | None = None,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """z = softcap·tanh((e·cᵀ + bias)/softcap)/temperature, [..., V]."""
    z = e.to(dtype) @ c.to(dtype).t()
    if bias is not None:
        z = z + bias.to(dtype)
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    return z / temperature


def entropy_filter_eps(filter_eps: float, vocabulary: int) -> float:
    """The threshold for calls with an entropy: eps/D with D = 1 + 4·(1 + log V - log eps).

    Below it p < eps and |p (log p + H)| < eps for every entropy 0 <= H <= log V: p·H <= (eps/D)·log V, and -p log p,
    growing below 1/e, is at most (eps/D)·(log D - log eps); D exceeds both factors.
    """
    if filter_eps <= 0.0:
        return filter_eps
    return filter_eps / (1.0 + 4.0 * (1.0 + math.log(vocabulary) - math.log(filter_eps)))


def lse_and_entropy(z: Tensor, filter_eps: float | None = None) -> tuple[Tensor, Tensor]:
    """log Σ exp z and -Σ p log p of logits [..., V]; a p of 0 adds nothing to the entropy.

    With ``filter_eps`` the values are the same and the gradients take p < filter_eps as 0:
    dlse/dz_v = p_v·[p_v >= eps], dH/dz_v = -p_v·(log p_v + H)·[p_v >= eps].
    """
    lse = torch.logsumexp(z, dim=-1)
    logp = z - lse.unsqueeze(-1)
    p = logp.exp()
    present = p != 0  # NaN counts as present, so that it shows in the entropy
    entropy = -torch.where(present, p * torch.where(present, logp, 0.0), 0.0).sum(-1)
    if filter_eps is None:
        return lse, entropy
    kept_p = torch.where(p < filter_eps, 0.0, p).detach()
    slope = -kept_p * torch.where(kept_p == 0, 0.0, logp + entropy.unsqueeze(-1)).detach()
    step = z - z.detach()  # zero with unit slope: puts the filtered derivative in place of autograd's
    return lse.detach() + (kept_p * step).sum(-1), entropy.detach() + (slope * step).sum(-1)


def linear_logprobs(
    e: Tensor,
    c: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    gather: Tensor | None = None,
    topk: int = 0,
    filter_eps: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> LinearLogprobs:
    """As :func:`tokcore.linear_logprobs` with ``filter_eps`` as a number, in ``dtype``."""
    z = logits(e, c, bias, softcap=softcap, temperature=temperature, dtype=dtype)
    return logprobs_of_logits(z, targets, entropy=entropy, gather=gather, topk=topk, filter_eps=filter_eps)


def logprobs_of_logits(
    z: Tensor,
    targets: Tensor,
    *,
    entropy: bool = False,
    gather: Tensor | None = None,
    topk: int = 0,
    filter_eps: float | None = None,
) -> LinearLogprobs:
    """What follows the logits z [..., V]."""
    if entropy and filter_eps is not None:
        filter_eps = entropy_filter_eps(filter_eps, z.size(-1))
    lse, found_entropy = lse_and_entropy(z, filter_eps)
    logp = z - lse.unsqueeze(-1)
    order = torch.sort(z, dim=-1, descending=True, stable=True).indices[..., :topk]  # equals: lower index first
    return LinearLogprobs(
        logprob=logp.gather(-1, targets.unsqueeze(-1)).squeeze(-1),
        lse=lse,
        entropy=found_entropy if entropy else None,
        gathered=None if gather is None else logp.gather(-1, gather),
        topk_values=logp.gather(-1, order) if topk else None,
        topk_indices=order if topk else None,
    )
