"""What the options mean, against plain PyTorch."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import grads, tensors
from torch import Tensor

import tokcore
from tokcore import linear_cross_entropy


def eager(e: Tensor, c: Tensor, targets: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    return F.cross_entropy(F.linear(e, c, bias), targets, **options)


def scalar(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_cross_entropy(reduction: str, smoothing: float, weighted: bool) -> None:
    e, c, targets, bias = tensors(37, 70, 19)
    targets[::5] = -100
    weight = torch.rand(70) if weighted else None
    mine = scalar(
        linear_cross_entropy(
            e, c, targets, bias, reduction=reduction, class_weight=weight, label_smoothing=smoothing, filter_eps=None
        )
    )
    theirs = eager(e, c, targets, bias, reduction=reduction, weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=2e-6)
    upstream = torch.randn(mine.shape)
    found, wanted = (grads((loss * upstream).sum(), e, c, bias) for loss in (mine, theirs))
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-6)


def test_call_style_of_cut_cross_entropy() -> None:
    e, c, targets, bias = (x.detach() for x in tensors(24, 50, 16))
    e, targets = e.view(2, 12, 16), targets.view(2, 12)
    targets[0, 3] = -100
    result = tokcore.linear_cross_entropy(e, c, targets, bias, -100, 30.0, "mean", 1, True)
    assert isinstance(result, tuple)
    loss, lse = result
    z = 30.0 * torch.tanh(F.linear(e[:, :-1], c, bias) / 30.0)
    labels = targets[:, 1:]
    torch.testing.assert_close(loss, F.cross_entropy(z.flatten(0, 1), labels.flatten()), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(lse, z.logsumexp(-1).where(labels != -100, 0.0), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("shift", [False, True, 0, 1, 3])
@pytest.mark.parametrize("leading", [(12,), (3, 12), (2, 2, 12)])
def test_shift_pairs_states_with_later_targets(shift: int, leading: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    e, c = torch.randn(*leading, 9, requires_grad=True), torch.randn(40, 9, requires_grad=True)
    targets = torch.randint(40, leading)
    targets[..., 5] = -100
    offset = int(shift)
    loss = scalar(linear_cross_entropy(e, c, targets, shift=shift, reduction="none"))
    labels = targets[..., offset:]
    z = F.linear(e[..., : 12 - offset, :], c)
    expected = F.cross_entropy(z.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=2e-6)
    upstream = torch.randn(loss.shape)
    for got, wanted in zip(grads((loss * upstream).sum(), e, c), grads((expected * upstream).sum(), e, c), strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("lse", "entropy", "rate"), list(itertools.product([False, True], repeat=3)))
def test_order_of_returns(lse: bool, entropy: bool, rate: bool) -> None:
    e, c, targets, _ = tensors(6, 40, 8, torch.bfloat16)
    result = linear_cross_entropy(
        e, c, targets, return_lse=lse, return_entropy=entropy, return_filter_rate=rate, filter_eps=0.01
    )
    outputs = list(result) if isinstance(result, tuple) else [result]
    assert isinstance(result, Tensor) == (not (lse or entropy or rate))
    shapes = [(), *[(6,)] * lse, *[(6,)] * entropy, *[()] * rate]
    assert [tuple(x.shape) for x in outputs] == shapes
    assert {x.dtype for x in outputs} == {torch.float32}
    assert [x.requires_grad for x in outputs] == [True, *[True] * lse, *[True] * entropy, *[False] * rate]


def test_scalar_target_and_vector_state() -> None:
    e, c, _, bias = tensors(1, 30, 8)
    loss = scalar(linear_cross_entropy(e[0], c, torch.tensor(7), bias, reduction="none"))
    assert loss.shape == ()
    torch.testing.assert_close(loss, eager(e[0], c, torch.tensor(7), bias), rtol=2e-6, atol=2e-6)


def test_token_weight_weighs_the_sum_and_not_the_mean_s_denominator() -> None:
    e, c, targets, _ = tensors(10, 30, 8)
    targets[2] = -100
    weight = torch.randn(10, requires_grad=True)
    loss = scalar(linear_cross_entropy(e, c, targets, token_weight=weight))
    per_token = eager(e, c, targets, reduction="none")
    torch.testing.assert_close(loss, (per_token * weight).sum() / 9, rtol=2e-6, atol=2e-6)
    (grad,) = grads(loss, weight)
    torch.testing.assert_close(grad, per_token.detach() / 9, rtol=2e-6, atol=2e-6)


def test_nonfinite_token_weight_of_an_ignored_position_does_not_count() -> None:
    e, c, targets, _ = tensors(4, 30, 8)
    targets[1] = -100
    weight = torch.tensor([1.0, float("nan"), 1.0, 1.0])
    loss = scalar(linear_cross_entropy(e, c, targets, token_weight=weight))
    torch.testing.assert_close(loss, eager(e, c, targets), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_ignored(dtype: torch.dtype) -> None:
    e, c, _, bias = tensors(5, 40, 8, dtype)
    targets = torch.full((5,), -100)
    assert scalar(linear_cross_entropy(e, c, targets, bias)).isnan()
    assert scalar(linear_cross_entropy(e, c, targets, bias, reduction="sum")) == 0
    assert torch.equal(scalar(linear_cross_entropy(e, c, targets, bias, reduction="none")), torch.zeros(5))
    for reduction in ("mean", "sum"):
        result = linear_cross_entropy(e, c, targets, bias, reduction=reduction, return_entropy=True, z_loss=0.1)
        for grad in grads(result[0] + result[1].sum(), e, c, bias):
            assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_no_tokens(shape: tuple[int, ...]) -> None:
    e = torch.zeros(*shape, 8, requires_grad=True)
    _, c, _, bias = tensors(1, 40, 8)
    targets = torch.zeros(shape, dtype=torch.int64)
    loss, lse, rate = linear_cross_entropy(
        e, c, targets, bias, return_lse=True, filter_eps=0.1, return_filter_rate=True
    )
    assert loss.isnan()
    assert lse.shape == shape
    assert rate == 0
    total = scalar(linear_cross_entropy(e, c, targets, bias, reduction="sum"))
    assert total == 0
    grad_e, grad_c, grad_bias = grads(total, e, c, bias)
    assert grad_e.shape == e.shape
    assert not grad_c.any()
    assert not grad_bias.any()


def test_one_class() -> None:
    e, c, _, bias = tensors(5, 1, 8)
    loss, lse, entropy = linear_cross_entropy(
        e, c, torch.zeros(5, dtype=torch.int64), bias, return_lse=True, return_entropy=True
    )
    assert abs(loss.item()) <= 1e-6
    assert entropy.abs().max() <= 1e-6
    torch.testing.assert_close(lse, F.linear(e, c, bias)[:, 0], rtol=2e-6, atol=2e-6)


def test_ignore_index_may_be_any_int() -> None:
    e, c, targets, _ = tensors(12, 30, 8)
    for ignored in (3, -1, 10**12):
        labels = targets.clone()
        labels[::3] = ignored
        expected = eager(e, c, labels, ignore_index=ignored)
        torch.testing.assert_close(
            scalar(linear_cross_entropy(e, c, labels, None, ignored)), expected, rtol=2e-6, atol=2e-6
        )


def test_frozen_inputs_get_no_gradient() -> None:
    e, c, targets, bias = tensors(12, 30, 8)
    full = grads(scalar(linear_cross_entropy(e, c, targets, bias)), e, c, bias)
    for frozen in range(3):
        leaves = [x.detach().requires_grad_(i != frozen) for i, x in enumerate((e, c, bias))]
        scalar(linear_cross_entropy(leaves[0], leaves[1], targets, leaves[2])).backward()
        assert leaves[frozen].grad is None
        for i in {0, 1, 2} - {frozen}:
            assert torch.equal(leaves[i].grad, full[i])


@pytest.mark.parametrize("strategy", ["recompute", "chunked"])
def test_second_derivatives_are_refused(strategy: str) -> None:
    e, c, targets, _ = tensors(4, 30, 8)
    loss = scalar(linear_cross_entropy(e, c, targets, strategy=strategy))
    with pytest.raises(NotImplementedError, match="create_graph"):
        torch.autograd.grad(torch.autograd.grad(loss.square(), e, create_graph=True)[0].sum(), e)


def test_bfloat16_auto_filter_is_two_to_the_minus_twelve() -> None:
    e, c, targets, _ = tensors(40, 300, 32, torch.bfloat16)
    e = (8 * e.detach()).requires_grad_()
    automatic, rate = linear_cross_entropy(e, c, targets, return_filter_rate=True)
    explicit, expected = linear_cross_entropy(e, c, targets, filter_eps=2.0**-12, return_filter_rate=True)
    assert rate == expected > 0
    for got, wanted in zip(grads(automatic, e, c), grads(explicit, e, c), strict=True):
        assert torch.equal(got, wanted)


def test_float32_auto_filter_is_exact() -> None:
    e, c, targets, _ = tensors(40, 300, 32)
    automatic, rate = linear_cross_entropy(e, c, targets, return_filter_rate=True)
    exact = scalar(linear_cross_entropy(e, c, targets, filter_eps=None))
    assert rate == 0
    for got, wanted in zip(grads(automatic, e, c), grads(exact, e, c), strict=True):
        assert torch.equal(got, wanted)


def test_smoothing_with_softcap_is_exact_by_itself() -> None:
    e, c, targets, _ = tensors(40, 300, 32, torch.bfloat16)
    options: dict[str, Any] = {"softcap": 5.0, "label_smoothing": 0.1}
    automatic, rate = linear_cross_entropy(e, c, targets, return_filter_rate=True, **options)
    exact = scalar(linear_cross_entropy(e, c, targets, filter_eps=None, **options))
    assert rate == 0
    for got, wanted in zip(grads(automatic, e, c), grads(exact, e, c), strict=True):
        assert torch.equal(got, wanted)
