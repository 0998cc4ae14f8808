"""What the gradient filter skips, costs and saves, and how close each loss is to fp32, on the model's hidden states."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

import tokcore
from tokcore.demo.losses import LOSSES, Loss, eager_loss


@dataclass(frozen=True)
class FilterProbe:
    """The gradient filter at its default threshold, on the hidden states of one training step.

    ``filter_rate`` is the share of (token, 32 vocabulary entries) tiles whose gradient is skipped; the errors are
    ||filtered - exact|| / ||exact|| of both gradients; ``seconds`` is forward plus backward with the filter.
    """

    step: int
    filter_rate: float
    error_e: float
    error_c: float
    seconds: float


@dataclass(frozen=True)
class GradientError:
    """Distance of a loss and its gradients from the same computation in fp32: |L - L32|, and relative norms."""

    name: str
    loss: float
    grad_e: float
    grad_c: float


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected||, in fp32; 0 when both are zero."""
    difference = (actual.float() - expected.float()).norm().item()
    norm = expected.float().norm().item()
    return difference / norm if norm else (0.0 if difference == 0.0 else float("inf"))


def filtered_loss(e: Tensor, c: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """tokcore's loss with the default gradient filter, and the filter rate (0-d fp32)."""
    result = tokcore.linear_cross_entropy(e, c, targets, filter_eps="auto", return_filter_rate=True)
    assert isinstance(result, tuple)
    return result[0], result[-1]


def probe_filter(step: int, e: Tensor, c: Tensor, targets: Tensor) -> FilterProbe:
    """Filter rate and gradient error on e and c, whose ``grad`` holds the exact gradients."""
    assert e.grad is not None
    assert c.grad is not None
    e_filtered, c_filtered = e.detach().requires_grad_(), c.detach().requires_grad_()
    start = time.perf_counter()
    loss, rate = filtered_loss(e_filtered, c_filtered, targets)
    grad_e, grad_c = torch.autograd.grad(loss, (e_filtered, c_filtered))
    seconds = time.perf_counter() - start
    return FilterProbe(step, rate.item(), relative_error(grad_e, e.grad), relative_error(grad_c, c.grad), seconds)


def gradient_errors(e: Tensor, c: Tensor, targets: Tensor) -> list[GradientError]:
    """Every loss, and tokcore's with the filter, against ``F.linear`` + ``F.cross_entropy`` of the inputs in fp32."""
    loss32, grad_e32, grad_c32 = _gradients(eager_loss, e.float(), c.float(), targets)
    losses: dict[str, Loss] = {**LOSSES, "tokcore filtered": lambda e, c, targets: filtered_loss(e, c, targets)[0]}
    errors = []
    for name, function in losses.items():
        loss, grad_e, grad_c = _gradients(function, e, c, targets)
        distance = abs(loss.item() - loss32.item())
        errors.append(GradientError(name, distance, relative_error(grad_e, grad_e32), relative_error(grad_c, grad_c32)))
    return errors


def _gradients(function: Loss, e: Tensor, c: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    e, c = e.detach().requires_grad_(), c.detach().requires_grad_()
    loss = function(e, c, targets)
    grad_e, grad_c = torch.autograd.grad(loss, (e, c))
    return loss.detach(), grad_e, grad_c
