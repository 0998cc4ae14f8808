"""Strided, expanded, transposed and very large inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support import DTYPES, assert_bitwise, results, tensors
from torch import Tensor

import tokcore


def outputs(e: Tensor, c: Tensor, bias: Tensor, targets: Tensor) -> dict[str, Tensor]:
    result = tokcore.linear_cross_entropy(e, c, targets, bias, -100, None, "none", 0, True, return_entropy=True)
    return dict(zip(("loss", "lse", "entropy"), result, strict=True))


def columns(x: Tensor) -> Tensor:
    """The same values with a row stride that is not the row length."""
    wide = torch.full((*x.shape[:-1], x.size(-1) + 3), float("nan"), dtype=x.dtype)
    wide[..., 1:-2] = x
    return wide[..., 1:-2]


def transposed(x: Tensor) -> Tensor:
    return x.t().contiguous().t()


def spaced(x: Tensor) -> Tensor:
    """The same values at every second element of the storage."""
    wide = torch.full((*x.shape, 2), float("nan"), dtype=x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


def backwards_rows(x: Tensor) -> Tensor:
    """Rows further apart than they are long, as every second row of a matrix."""
    return torch.stack([x, torch.full_like(x, float("nan"))], 1).flatten(0, 1)[::2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [columns, transposed, spaced, backwards_rows])
def test_strides_do_not_change_a_bit(dtype: torch.dtype, layout: Callable[[Tensor], Tensor]) -> None:
    e, c, targets, bias = (x.detach() for x in tensors(37, 70, 19, dtype))
    dense = {"e": e, "c": c, "bias": bias, "targets": targets}
    expected = results(outputs, {k: v.detach().requires_grad_(v.is_floating_point()) for k, v in dense.items()})
    strided = {"e": layout(e.detach()).requires_grad_(), "c": layout(c.detach()).requires_grad_()}
    assert not all(x.is_contiguous() for x in strided.values())
    wide_bias = spaced(bias.detach()).requires_grad_()
    wide_targets = torch.stack([targets, targets], 1)[:, 0]
    got = results(outputs, {**strided, "bias": wide_bias, "targets": wide_targets})
    assert_bitwise(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_expanded_rows(dtype: torch.dtype) -> None:
    e, c, targets, bias = (x.detach() for x in tensors(1, 1, 19, dtype))
    e, c, bias, targets = e.expand(37, 19), c.expand(70, 19), bias.expand(70), targets.expand(37)
    dense = {"e": e.contiguous(), "c": c.contiguous(), "bias": bias.contiguous(), "targets": targets.contiguous()}
    views = {"e": e, "c": c, "bias": bias, "targets": targets}
    found = [
        results(outputs, {k: v.detach().requires_grad_(v.is_floating_point()) for k, v in given.items()})
        for given in (views, dense)
    ]
    assert_bitwise(found[0], found[1])


def test_transposed_leading_dimensions() -> None:
    e, c, targets, bias = tensors(24, 50, 16)
    e3, t3 = e.detach().view(4, 6, 16).transpose(0, 1), targets.view(4, 6).t()
    loss = tokcore.linear_cross_entropy(e3, c, t3, bias, reduction="none")
    flat = tokcore.linear_cross_entropy(e, c, targets, bias, reduction="none")
    assert isinstance(loss, Tensor)
    assert isinstance(flat, Tensor)
    assert torch.equal(loss, flat.view(4, 6).t())


def test_an_upstream_gradient_may_be_expanded() -> None:
    e, c, targets, bias = tensors(12, 50, 16)
    loss = tokcore.linear_cross_entropy(e, c, targets, bias, reduction="none")
    assert isinstance(loss, Tensor)
    expanded = torch.autograd.grad(loss, (e, c, bias), torch.ones(()).expand(12), retain_graph=True)
    dense = torch.autograd.grad(loss, (e, c, bias), torch.ones(12))
    assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))


def test_more_than_two_to_the_31_logits() -> None:
    # A stride-0 classifier: every logit of a row is the same, so that lse and entropy are known.
    T, V, C = 8300, 262144, 1
    assert T * V > 2**31
    e = torch.linspace(-3, 3, T).unsqueeze(1).requires_grad_()
    c = torch.tensor([[0.5]]).expand(V, C)
    targets = torch.arange(T) * 31 % V
    loss, lse, entropy = tokcore.linear_cross_entropy(e, c, targets, return_lse=True, return_entropy=True)
    log_v = torch.tensor(float(V)).log()
    torch.testing.assert_close(lse, 0.5 * e.detach()[:, 0] + log_v, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(entropy, log_v.expand(T), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(loss, log_v, rtol=1e-6, atol=1e-5)


def test_rows_past_two_to_the_31_elements_of_storage() -> None:
    # Strides reach far beyond 2^31 bytes although few elements are touched: the storage is mapped, never written.
    stride, rows = 2**29, 5
    storage = torch.empty(stride * (rows - 1) + 16, dtype=torch.bfloat16)
    far = storage.as_strided((rows, 16), (stride, 1))
    near = torch.randn(rows, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    far.copy_(near)
    targets = torch.arange(4)
    e = torch.randn(4, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    got = tokcore.linear_cross_entropy(e, far, targets, reduction="none")
    expected = tokcore.linear_cross_entropy(e, near, targets, reduction="none")
    assert isinstance(got, Tensor)
    assert isinstance(expected, Tensor)
    assert torch.equal(got, expected)
