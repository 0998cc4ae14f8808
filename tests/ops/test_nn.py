"""The modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import tensors
from torch import Tensor

import tokcore


def test_module_is_the_function() -> None:
    e, c, targets, bias = tensors(24, 50, 16, torch.bfloat16)
    options: dict[str, Any] = {"softcap": 5.0, "reduction": "sum", "shift": 1, "temperature": 0.5, "z_loss": 0.1}
    weight, token_weight = torch.rand(50), torch.rand(24)
    module = tokcore.nn.LinearCrossEntropy(**options, class_weight=weight)
    got = module(e, c, targets, bias, token_weight=token_weight)
    expected = tokcore.linear_cross_entropy(
        e, c, targets, bias, class_weight=weight, token_weight=token_weight, **options
    )
    assert torch.equal(got, expected)  # type: ignore[arg-type]
    assert "softcap=5.0" in repr(module)


def test_module_takes_the_options_of_cut_cross_entropy_by_position() -> None:
    e, c, targets, _ = tensors(24, 50, 16)
    got = tokcore.nn.LinearCrossEntropy(-100, 30.0, "sum", True)(e, c, targets)
    assert torch.equal(got, tokcore.linear_cross_entropy(e, c, targets, None, -100, 30.0, "sum", 1))  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(torch.nn, "LinearCrossEntropyLoss"), reason="torch.nn.LinearCrossEntropyLoss is newer")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True, "reduction": "sum"},
        {"weight": torch.linspace(0.1, 1.0, 50), "label_smoothing": 0.2},
        {"ignore_index": 3, "reduction": "none"},
        {"dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_loss_module_takes_torch_arguments_and_state(options: dict[str, Any]) -> None:
    mine = tokcore.nn.LinearCrossEntropyLoss(16, 50, **options)
    theirs = torch.nn.LinearCrossEntropyLoss(16, 50, **options)
    mine.load_state_dict(theirs.state_dict())
    dtype = options.get("dtype", torch.float32)
    x = torch.randn(24, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    target = torch.randint(50, (24,), generator=torch.Generator().manual_seed(1))
    target[:4] = 3
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(mine(x, target), theirs(x, target).float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("options", "argument"), [({"out_features": (2,)}, "out_features"), ({"options": object()}, "options")]
)
def test_loss_module_names_what_it_does_not_support(options: dict[str, Any], argument: str) -> None:
    with pytest.raises(NotImplementedError, match=f"argument '{argument}': expected .* got"):
        tokcore.nn.LinearCrossEntropyLoss(16, 50, **options)


def test_loss_module_refuses_class_probabilities() -> None:
    module = tokcore.nn.LinearCrossEntropyLoss(16, 50)
    with pytest.raises(NotImplementedError, match="argument 'target': expected class indices"):
        module(torch.randn(4, 16), torch.rand(4, 50))


def test_loss_module_checks_the_weight() -> None:
    with pytest.raises(ValueError, match=r"argument 'weight': expected shape \[50\], got \[49\]"):
        tokcore.nn.LinearCrossEntropyLoss(16, 50, weight=torch.ones(49))


def test_module_trains() -> None:
    torch.manual_seed(0)
    module = tokcore.nn.LinearCrossEntropyLoss(16, 50, bias=True)
    x, target = torch.randn(64, 16), torch.randint(50, (64,))
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    losses: list[Tensor] = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(module(x, target))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
