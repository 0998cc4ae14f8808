"""``linear_cross_entropy``: the loss of a linear classifier without its logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokcore.ops import _checks as checks
from tokcore.ops.linear_cross_entropy_chunked import chunked_loss, default_workspace_bytes, picks_chunked
from tokcore.ops.linear_logprobs import FILTER_TILE, Statistics, flatten_rows, statistics, wants_grad

REDUCTIONS = ("mean", "sum", "none")
STRATEGIES = ("auto", "recompute", "chunked")


def linear_cross_entropy(
    e: Tensor,
    c: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    reduction: str = "mean",
    shift: bool | int = 0,
    return_lse: bool = False,
    filter_eps: float | str | None = "auto",
    *,
    class_weight: Tensor | None = None,
    token_weight: Tensor | None = None,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_entropy: bool = False,
    strategy: str = "auto",
    workspace_bytes: int | None = None,
    return_filter_rate: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Cross entropy of the logits e·cᵀ + bias, without holding them.

    With z = softcap·tanh((e·cᵀ + bias)/softcap)/temperature, lse = log Σ exp z, y the target, w the class weights (1
    without), u the token weights (1 without) and s the smoothing, every position contributes
    u·[(1-s)·w_y·(lse - z_y) + (s/V)·Σ_v w_v·(lse - z_v) + z_loss·lse²]; a target equal to ``ignore_index`` contributes
    nothing. ``"mean"`` divides the sum by Σ w_y over the positions that count (u does not enter: it may be negative),
    which gives NaN when none does.

    Args:
        e: hidden states [..., C], float32, bfloat16 or float16.
        c: classifier [V, C], dtype of ``e``. A last dimension that is not dense is copied, of ``e`` too.
        targets: int64 [...], values in [0, V) or ``ignore_index``.
        bias: [V], dtype of ``e`` or float32.
        ignore_index: target value of positions that do not count.
        softcap: positive bound of the logits before the temperature, or None.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        shift: pairs the hidden state at s with the target at s + shift of the last dimension, without a copy; per-token
            outputs then have the shape of ``targets[..., shift:]``.
        return_lse: also return lse, fp32, 0 at ignored positions.
        filter_eps: probabilities below it count as zero in the gradients: ``"auto"`` is 2^-12 for bfloat16, 2^-15 for
            float16 and off for float32; None or 0 is exact. With ``return_entropy`` the threshold is lowered so that
            neither p nor ``|p (log p + H)|`` above ``filter_eps`` is dropped. Smoothing together with softcap is exact.
        class_weight: w, float32 [V], without gradient.
        token_weight: u, shape of ``targets``, differentiable.
        temperature: positive divisor of the logits.
        label_smoothing: s in [0, 1).
        z_loss: factor of lse², not negative.
        return_entropy: also return the entropy lse - Σ p·z, fp32 nats, 0 at ignored positions.
        strategy: ``"recompute"`` computes the logits again in the backward: 8·T·V·C FLOPs in total, no workspace that
            grows with T·V. ``"chunked"`` computes gradients in the forward, a chunk of positions at a time: 6·T·V·C
            FLOPs, exact (``filter_eps=None``), for a loss of one number and nothing returned beside it. ``"auto"``
            takes ``"chunked"`` where it may and FLOPs are dear (all but bfloat16 on AMX) and 256 positions fit in the
            workspace, else ``"recompute"``.
        workspace_bytes: bound of the scratch memory. Chunked: of the logits of a chunk (None: 64 MiB, on CUDA 1 GiB).
            Recompute: of the backward, which then uses fewer threads, separate sweeps for the gradients of ``e`` and
            ``c``, or on CUDA smaller chunks (None: no bound; about 8·T·C bytes and some MiB, twice that for float32).
        return_filter_rate: also return, 0-d fp32, the share of 1 × 32 tiles of the logits that the backward skips.

    Returns:
        loss (fp32), then lse, entropy and filter rate as asked for, as a tuple if there is more than the loss. All but
        the rate are differentiable with respect to ``e``, ``c``, ``bias`` and ``token_weight`` (first derivatives).

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong device, rank, shape or value, a target out of range
            included. NotImplementedError: a device or strategy without kernels; a number for ``filter_eps`` with
            smoothing and softcap together.

    Results are bitwise repeatable whatever the thread count, and each row is bitwise what it is alone. About (T + V)·C
    elements are read from memory. After Cut Your Losses in Large-Vocabulary Language Models (arXiv 2411.09009).
    """
    require = checks.wrapper_require("linear_cross_entropy")
    checks.check_classifier(require, e, c, targets, bias, class_weight, token_weight)
    seq_len = targets.size(-1) if targets.dim() > 0 else 1
    checks.check_count(require, "ignore_index", ignore_index, -(2**63), 2**63 - 1, "int64")
    checks.check_positive(require, "softcap", softcap, optional=True)
    checks.check_choice(require, "reduction", reduction, REDUCTIONS)
    _check_shift(require, shift, seq_len)
    checks.check_positive(require, "temperature", temperature, optional=False)
    checks.check_interval(require, "label_smoothing", label_smoothing, 1.0)
    checks.check_interval(require, "z_loss", z_loss, math.inf)
    exact = label_smoothing > 0.0 and softcap is not None
    eps = checks.resolve_filter_eps(require, filter_eps, e.dtype, exact)
    checks.check_choice(require, "strategy", strategy, STRATEGIES)
    if workspace_bytes is not None:
        checks.check_count(require, "workspace_bytes", workspace_bytes, 1, 2**63 - 1, "bytes")
    offset = int(shift)
    sequence = seq_len if offset and targets.dim() > 1 else 0
    trains = wants_grad(e, c, bias)
    obstacle = _obstacle_to_chunks(
        filter_eps, eps, reduction, token_weight, return_lse or return_entropy or return_filter_rate
    )
    if strategy == "chunked":
        require(obstacle is None, "strategy", lambda: f"'auto' or 'recompute' {obstacle}", lambda: "'chunked'")
    budget = default_workspace_bytes(e.device) if workspace_bytes is None else workspace_bytes
    if strategy == "auto" and obstacle is None and picks_chunked(e, targets.numel(), c.size(0), budget):
        strategy = "chunked"
    if strategy == "chunked" and trains:
        return chunked_loss(
            "linear_cross_entropy",
            flatten_rows(e),
            flatten_rows(c),
            targets.reshape(-1),
            bias,
            class_weight,
            None if token_weight is None else token_weight.reshape(-1),
            ignore_index=ignore_index,
            seq_len=sequence,
            shift=offset,
            mean=reduction == "mean",
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            workspace_bytes=budget,
            softcap=softcap,
            temperature=temperature,
        )
    found = statistics(
        "linear_cross_entropy",
        flatten_rows(e),
        flatten_rows(c),
        targets.reshape(-1, 1),
        bias,
        class_weight,
        ignore_index=ignore_index,
        seq_len=sequence,
        shift=offset,
        softcap=softcap,
        temperature=temperature,
        entropy=return_entropy,
        logit_sum=label_smoothing > 0.0,
        filter_eps=eps if return_filter_rate or trains else None,
        workspace_bytes=workspace_bytes if trains else None,
    )

    def per_token(x: Tensor) -> Tensor:
        x = x.reshape(targets.shape)
        return x[..., offset:] if offset else x

    labels = per_token(targets)
    active = labels != ignore_index
    lse = per_token(found.lse)
    weight = None if class_weight is None else class_weight[torch.where(active, labels, 0)] * active
    nll = lse - per_token(found.gathered)
    loss = nll if weight is None else weight * nll
    if label_smoothing > 0.0:
        total = c.size(0) if class_weight is None else class_weight.sum()
        uniform = (total * lse - per_token(found.logit_sum)) / c.size(0)
        loss = (1.0 - label_smoothing) * loss + label_smoothing * uniform
    if z_loss > 0.0:
        loss = loss + z_loss * lse.square()
    if token_weight is not None:
        loss = torch.where(active, loss * per_token(token_weight).float(), 0.0)
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        loss = loss / (active.sum() if weight is None else weight.sum())

    extras = [lse] * return_lse
    if return_entropy:
        extras.append(per_token(found.entropy))
    if return_filter_rate:
        extras.append(_filter_rate(found, active, c.size(0)))
    return (loss, *extras) if extras else loss


def _obstacle_to_chunks(
    filter_eps: float | str | None, eps: float | None, reduction: str, token_weight: Tensor | None, returns_more: bool
) -> str | None:
    """Why gradients cannot be made in the forward, or None: they need a loss of one number and nothing beside it."""
    if reduction == "none":
        return "with reduction 'none'"
    if returns_more:
        return "with return_lse, return_entropy or return_filter_rate"
    if token_weight is not None and token_weight.requires_grad:
        return "with a token_weight that requires a gradient"
    if eps is not None and filter_eps is not None:
        return "with filter_eps: chunked gradients are exact, pass filter_eps=None"
    return None


def _check_shift(require: checks.Require, shift: bool | int, seq_len: int) -> None:
    require(
        isinstance(shift, (bool, int, torch.SymInt)),
        "shift",
        lambda: "a bool or an int",
        lambda: type(shift).__name__,
        TypeError,
    )
    in_range = shift == 0 or 0 < shift < seq_len
    expected = "(last dimension of targets)"
    require(in_range, "shift", lambda: f"a value in [0, {seq_len}) {expected}", lambda: f"{int(shift)}")


def _filter_rate(found: Statistics, active: Tensor, vocabulary: int) -> Tensor:
    """1 - (tiles kept)/(tiles): one bit per position and 32 entries of the vocabulary, 0 where nothing is filtered."""
    if found.kept.dim() != 2 or found.kept.size(0) == 0:
        return found.lse.new_zeros(())
    # Bits counted within each 32-bit word by adding neighbours; a broadcast over 32 shifts would specialise shapes.
    words = found.kept.reshape(-1).to(torch.int64) & 0xFFFFFFFF
    words = words - ((words >> 1) & 0x55555555)
    words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F
    kept = ((words * 0x01010101 >> 24) & 0xFF).sum()
    tiles = active.sum() * ((vocabulary + FILTER_TILE - 1) // FILTER_TILE)
    return torch.where(tiles > 0, 1.0 - kept.double() / tiles, 0.0).float()
