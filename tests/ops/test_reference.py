"""The references are the specification: they agree with PyTorch's own functions and with numerical differentiation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tokcore.reference.linear_cross_entropy import linear_cross_entropy
from tokcore.reference.linear_logprobs import entropy_filter_eps, linear_logprobs, lse_and_entropy


def fp64(T: int, V: int, C: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    return leaf(T, C), leaf(V, C), torch.randint(V, (T,), generator=generator), leaf(V)


LOSS_OPTIONS: list[dict[str, Any]] = [
    {},
    {"softcap": 2.0, "temperature": 0.7},
    {"label_smoothing": 0.2, "class_weight": torch.linspace(0.1, 2.0, 7)},
    {"z_loss": 0.3, "token_weight": torch.tensor([1.0, -1.0, 0.5, 2.0])},
    {"shift": 1, "reduction": "sum"},
    {"reduction": "none", "softcap": 1.0, "label_smoothing": 0.1},
]


@pytest.mark.parametrize("options", LOSS_OPTIONS, ids=lambda options: "+".join(options) or "plain")
def test_gradcheck_of_the_loss(options: dict[str, Any]) -> None:
    e, c, targets, bias = fp64(4, 7, 3)
    targets[1] = -100

    def call(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(linear_cross_entropy(x[0], x[1], targets, x[2], **options))

    assert torch.autograd.gradcheck(call, (e, c, bias))


def test_gradcheck_of_the_logprobs() -> None:
    e, c, targets, bias = fp64(4, 7, 3)
    gather = torch.tensor([[0, 3], [6, 1], [2, 2], [5, 0]])

    def call(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = linear_logprobs(
            x[0], x[1], targets, x[2], softcap=2.0, temperature=0.7, entropy=True, gather=gather, topk=2
        )
        return tuple(value for value in result if value is not None and value.is_floating_point())

    assert torch.autograd.gradcheck(call, (e, c, bias))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_is_cross_entropy(reduction: str) -> None:
    e, c, targets, bias = fp64(9, 7, 3)
    targets[1] = -100
    weight = torch.rand(7, dtype=torch.float64)
    mine = linear_cross_entropy(e, c, targets, bias, reduction=reduction, class_weight=weight, label_smoothing=0.1)
    theirs = F.cross_entropy(F.linear(e, c, bias), targets, weight, reduction=reduction, label_smoothing=0.1)
    torch.testing.assert_close(mine.loss, theirs)


def test_entropy_takes_zero_probability_as_zero() -> None:
    z = torch.tensor([[0.0, float("-inf"), 0.0], [float("nan"), 0.0, 0.0], [0.0, -1e4, 1e4]], dtype=torch.float64)
    z.requires_grad_()
    lse, entropy = lse_and_entropy(z)
    expected = torch.tensor([2.0, float("nan"), 1.0], dtype=torch.float64).log()
    torch.testing.assert_close(entropy, expected, equal_nan=True)
    (grad,) = torch.autograd.grad((lse + entropy)[[0, 2]].sum(), z)
    assert grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize("eps", [0.5, 2.0**-9, 2.0**-12, 2.0**-15, 1e-30])
@pytest.mark.parametrize("vocabulary", [1, 2, 1000, 262144])
def test_below_the_entropy_threshold_no_gradient_exceeds_eps(eps: float, vocabulary: int) -> None:
    threshold = entropy_filter_eps(eps, vocabulary)
    assert 0 < threshold <= eps
    p = threshold * torch.logspace(-20, 0, 200, dtype=torch.float64)
    for entropy in (0.0, 0.5, 1.0):
        H = entropy * torch.tensor(float(vocabulary), dtype=torch.float64).log()
        assert (p * (p.log() + H).abs()).max() <= eps


def test_filtered_gradient_is_the_gradient_with_small_p_as_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    z = (3 * torch.randn(5, 11, generator=generator, dtype=torch.float64)).requires_grad_()
    u, h = torch.randn(2, 5, 1, generator=generator, dtype=torch.float64)
    eps = 0.05
    lse, entropy = lse_and_entropy(z, eps)
    exact_lse, exact_entropy = lse_and_entropy(z)
    assert torch.equal(lse, exact_lse)
    assert torch.equal(entropy, exact_entropy)
    (grad,) = torch.autograd.grad((u.squeeze(1) * lse + h.squeeze(1) * entropy).sum(), z)
    p = z.detach().softmax(-1)
    p_kept = torch.where(p < eps, 0.0, p)
    expected = p_kept * u - h * p_kept * (p.log() + exact_entropy.detach().unsqueeze(-1))
    assert (p_kept == 0).any()
    torch.testing.assert_close(grad, expected)
