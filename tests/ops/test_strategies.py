"""The two ways to the gradients: recomputing in the backward, and chunk by chunk in the forward."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from support import DTYPES, assert_bitwise, tensors, threads
from torch import Tensor

from tokcore import linear_cross_entropy

CHUNKED: dict[str, Any] = {"strategy": "chunked", "filter_eps": None}


def gradients(leaves: tuple[Tensor, ...], targets: Tensor, factor: float = 1.0, **options: Any) -> dict[str, Tensor]:
    e, c, bias = leaves
    loss = linear_cross_entropy(e, c, targets, bias, **options)
    assert isinstance(loss, Tensor)
    grad_e, grad_c, grad_bias = torch.autograd.grad(factor * loss, leaves)
    return {"loss": loss.detach(), "grad_e": grad_e, "grad_c": grad_c, "grad_bias": grad_bias}


def least_workspace(leaves: tuple[Tensor, ...], targets: Tensor, **options: Any) -> int:
    """The bound that the error text names."""
    with pytest.raises(ValueError, match=r"argument 'workspace_bytes': expected at least \d+, got 1$") as raised:
        gradients(leaves, targets, workspace_bytes=1, **options)
    found = re.search(r"at least (\d+)", str(raised.value))
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("workspace", ["least", "two chunks", "default"])
def test_chunks_agree_with_recomputation(dtype: torch.dtype, workspace: str) -> None:
    e, c, targets, bias = tensors(130, 300, 40, dtype)
    targets[::9] = -100
    leaves = (e, c, bias)
    least = least_workspace(leaves, targets, **CHUNKED)
    assert least == 320 * 32 * 4  # the fp32 logits of 32 positions
    budget = {"least": least, "two chunks": 2 * least, "default": None}[workspace]
    chunked = gradients(leaves, targets, workspace_bytes=budget, **CHUNKED)
    exact = gradients(leaves, targets, strategy="recompute", filter_eps=None)
    tolerance = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for name, value in exact.items():
        torch.testing.assert_close(chunked[name], value, rtol=tolerance, atol=tolerance * value.abs().max().item())


@pytest.mark.parametrize("dtype", DTYPES)
def test_thread_count_changes_no_bit_of_the_chunked_strategy(dtype: torch.dtype) -> None:
    e, c, targets, bias = tensors(130, 1000, 40, dtype)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(gradients((e, c, bias), targets, workspace_bytes=1024 * 32 * 4 * 2, **CHUNKED))
    assert_bitwise(found[1], found[0])
    assert_bitwise(found[2], found[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{"filter_eps": None}, {"filter_eps": 1e-3}])
def test_a_bounded_recomputation_changes_no_bit(dtype: torch.dtype, options: dict[str, Any]) -> None:
    e, c, targets, bias = tensors(300, 500, 40, dtype)
    leaves = (e, c, bias)
    least = least_workspace(leaves, targets, strategy="recompute", **options)
    bounded = gradients(leaves, targets, strategy="recompute", workspace_bytes=least, **options)
    assert_bitwise(bounded, gradients(leaves, targets, strategy="recompute", **options))


@pytest.mark.parametrize("dtype", DTYPES)
def test_auto_is_one_of_the_two(dtype: torch.dtype) -> None:
    e, c, targets, bias = tensors(300, 500, 40, dtype)
    leaves = (e, c, bias)
    automatic = gradients(leaves, targets, filter_eps=None)
    candidates = [gradients(leaves, targets, filter_eps=None, strategy=name) for name in ("recompute", "chunked")]
    assert any(all(torch.equal(automatic[k], v) for k, v in candidate.items()) for candidate in candidates)


@pytest.mark.parametrize("factor", [1.0, -2.5, 0.0])
def test_upstream_gradient_scales(factor: float) -> None:
    e, c, targets, bias = tensors(70, 100, 24)
    once = gradients((e, c, bias), targets, **CHUNKED)
    scaled = gradients((e, c, bias), targets, factor, **CHUNKED)
    for name in ("grad_e", "grad_c", "grad_bias"):
        torch.testing.assert_close(scaled[name], factor * once[name])


def test_backward_twice() -> None:
    e, c, targets, _ = tensors(70, 100, 24)
    loss = linear_cross_entropy(e, c, targets, **CHUNKED)
    assert isinstance(loss, Tensor)
    loss.backward(retain_graph=True)
    assert e.grad is not None
    assert c.grad is not None
    first = e.grad.clone(), c.grad.clone()
    e.grad.zero_()  # an optimizer may write into gradients: the kept ones must not change with them
    c.grad = None
    loss.backward()
    assert torch.equal(e.grad, first[0])
    assert torch.equal(c.grad, first[1])


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_inputs_get_no_gradient(frozen: int) -> None:
    e, c, targets, bias = tensors(70, 100, 24)
    full = gradients((e, c, bias), targets, **CHUNKED)
    leaves = [x.detach().requires_grad_(i != frozen) for i, x in enumerate((e, c, bias))]
    loss = linear_cross_entropy(leaves[0], leaves[1], targets, leaves[2], **CHUNKED)
    assert isinstance(loss, Tensor)
    loss.backward()
    for i, name in enumerate(("grad_e", "grad_c", "grad_bias")):
        grad = leaves[i].grad
        assert (grad is None) == (i == frozen)
        if grad is not None:
            assert torch.equal(grad, full[name])


@pytest.mark.parametrize("weighted", [False, True])
def test_all_ignored(weighted: bool) -> None:
    e, c, _, bias = tensors(5, 40, 8)
    targets = torch.full((5,), -100)
    weight = torch.rand(40) if weighted else None
    found = gradients((e, c, bias), targets, class_weight=weight, **CHUNKED)
    assert found.pop("loss").isnan()
    assert not any(grad.any() for grad in found.values())
    assert gradients((e, c, bias), targets, reduction="sum", **CHUNKED)["loss"] == 0


def test_no_tokens() -> None:
    _, c, _, bias = tensors(1, 40, 8)
    e = torch.zeros(0, 8, requires_grad=True)
    found = gradients((e, c, bias), torch.zeros(0, dtype=torch.int64), reduction="sum", **CHUNKED)
    assert not any(value.any() for value in found.values())


@pytest.mark.parametrize("value", [-1, 40, 2**40])
def test_targets_out_of_range(value: int) -> None:
    e, c, targets, bias = tensors(5, 40, 8)
    targets[3] = value
    text = rf"linear_cross_entropy: argument 'targets': expected values in \[0, 40\) .*, got {value} at position 3"
    for weight in (None, torch.rand(40)):
        with pytest.raises(ValueError, match=text):
            linear_cross_entropy(e, c, targets, bias, class_weight=weight, **CHUNKED)


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "none"},
        {"return_lse": True},
        {"return_entropy": True},
        {"return_filter_rate": True},
        {"filter_eps": 0.01},
        {"token_weight": torch.ones(5, requires_grad=True)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_chunks_cannot_do_is_named(options: dict[str, Any]) -> None:
    e, c, targets, bias = tensors(5, 40, 8)
    name = next(iter(options))
    with pytest.raises(
        ValueError, match=f"argument 'strategy': expected 'auto' or 'recompute' with .*{name}.*'chunked'"
    ):
        linear_cross_entropy(e, c, targets, bias, **{**CHUNKED, **options})
