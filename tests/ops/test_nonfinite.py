"""NaN and infinities come out where the reference has them, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from support import DTYPES, tensors
from torch import Tensor

import tokcore
from tokcore.reference.linear_cross_entropy import linear_cross_entropy as reference_loss
from tokcore.testing.numerics import same_nonfinite

INF, NAN = float("inf"), float("nan")


def outputs(e: Tensor, c: Tensor, targets: Tensor, bias: Tensor, **options: float) -> dict[str, Tensor]:
    result = tokcore.linear_cross_entropy(
        e, c, targets, bias, reduction="none", return_lse=True, return_entropy=True, filter_eps=None, **options
    )
    return dict(zip(("loss", "lse", "entropy"), result, strict=True))


def assert_same_places(e: Tensor, c: Tensor, targets: Tensor, bias: Tensor, **options: float) -> None:
    got = outputs(e, c, targets, bias, **options)
    expected = reference_loss(e, c, targets, bias, reduction="none", **options)._asdict()
    for name, value in expected.items():
        assert same_nonfinite(got[name], value), name
        finite = value.isfinite()
        torch.testing.assert_close(got[name][finite].double(), value[finite], rtol=1e-4, atol=1e-4)
    total = sum(value.sum() for value in got.values())
    wanted = sum(value.sum() for value in expected.values())
    assert isinstance(total, Tensor)
    assert isinstance(wanted, Tensor)
    for got_grad, expected_grad in zip(
        torch.autograd.grad(total, (e, c, bias)), torch.autograd.grad(wanted, (e, c, bias)), strict=True
    ):
        assert torch.equal(got_grad.isfinite(), expected_grad.isfinite())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("where", ["e", "c", "bias", "all-bias"])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}], ids=["plain", "softcap"])
def test_places(dtype: torch.dtype, value: float, where: str, options: dict[str, float]) -> None:
    e, c, targets, bias = (x.detach() for x in tensors(40, 70, 19, dtype))
    if where == "e":
        e[5, 3] = e[36, 0] = value
    elif where == "c":
        c[33, 2] = value
    elif where == "bias":
        bias[33] = bias[69] = value
    else:
        bias[:] = value
    assert_same_places(e.requires_grad_(), c.requires_grad_(), targets, bias.requires_grad_(), **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_masked_vocabulary_entry_has_no_part(dtype: torch.dtype) -> None:
    # A bias of -inf removes an entry: everything else is as without it.
    e, c, _, bias = (x.detach() for x in tensors(40, 70, 19, dtype))
    targets = torch.arange(40)
    bias[50:] = -INF
    leaves = [x.requires_grad_() for x in (e, c, bias)]
    masked = outputs(e, c, targets, bias)
    short = [x.detach().clone().requires_grad_() for x in (e, c[:50], bias[:50])]
    kept = outputs(short[0], short[1], targets, short[2])
    for name in masked:
        torch.testing.assert_close(masked[name], kept[name], rtol=1e-5, atol=1e-5)
    got = torch.autograd.grad(sum(x.sum() for x in masked.values()), leaves)  # type: ignore[arg-type]
    expected = torch.autograd.grad(sum(x.sum() for x in kept.values()), short)  # type: ignore[arg-type]
    tolerance = torch.finfo(dtype).eps * 4
    torch.testing.assert_close(got[0], expected[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(got[1][:50], expected[1], rtol=tolerance, atol=tolerance)
    assert not got[1][50:].any()
    assert not got[2][50:].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("filter_eps", [None, 1e-3])
def test_a_bad_row_spoils_no_other(dtype: torch.dtype, filter_eps: float | None) -> None:
    e, c, targets, bias = (x.detach() for x in tensors(40, 70, 19, dtype))

    def rows(states: Tensor) -> tuple[Tensor, Tensor]:
        states = states.detach().requires_grad_()
        result = tokcore.linear_cross_entropy(states, c, targets, bias, reduction="none", filter_eps=filter_eps)
        assert isinstance(result, Tensor)
        return result.detach(), torch.autograd.grad(result.sum(), states)[0]

    clean_loss, clean_grad = rows(e)
    spoiled = e.clone()
    spoiled[7] = NAN
    spoiled[8, 0] = INF
    loss, grad = rows(spoiled)
    good = torch.ones(40, dtype=torch.bool)
    good[[7, 8]] = False
    assert torch.equal(loss[good], clean_loss[good])
    assert torch.equal(grad[good], clean_grad[good])
    assert loss[7].isnan()
    assert grad[7].isnan().all()  # a filter must not hide it


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_of_an_ignored_row_stays_inside(dtype: torch.dtype) -> None:
    e, c, targets, bias = (x.detach() for x in tensors(40, 70, 19, dtype))
    targets[7] = -100
    clean = e.clone()
    clean[7] = 0
    e[7] = NAN
    found = []
    for states in (e, clean):
        leaves = [x.clone().requires_grad_() for x in (states, c, bias)]
        loss = tokcore.linear_cross_entropy(leaves[0], leaves[1], targets, leaves[2])
        assert isinstance(loss, Tensor)
        found.append((loss, *torch.autograd.grad(loss, leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not found[0][1][7].any()


def test_topk_takes_nan_as_the_greatest() -> None:
    e, c, targets, bias = tensors(3, 40, 8, grad=False)
    bias[[4, 30]] = NAN
    result = tokcore.linear_logprobs(e, c, targets, bias, topk=3)
    assert result.topk_indices is not None
    others = torch.nn.functional.linear(e, c, bias.nan_to_num(-INF)).argmax(-1)
    assert torch.equal(result.topk_indices, torch.stack([torch.full((3,), 4), torch.full((3,), 30), others], 1))


def test_topk_among_infinitely_unlikely_entries() -> None:
    e, c, targets, bias = tensors(3, 40, 8, grad=False)
    bias[3:] = -INF
    result = tokcore.linear_logprobs(e, c, targets, bias, topk=6)
    assert result.topk_indices is not None
    assert result.topk_values is not None
    assert torch.equal(result.topk_indices[:, 3:], torch.tensor([3, 4, 5]).expand(3, 3))
    assert (result.topk_values[:, 3:] == -INF).all()


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_large_logits_do_not_overflow(scale: float) -> None:
    e, c, targets, _ = tensors(20, 70, 19, grad=False)
    loss, lse = tokcore.linear_cross_entropy(scale * e, c, targets, reduction="none", return_lse=True)
    expected = reference_loss(scale * e, c, targets, reduction="none")
    torch.testing.assert_close(loss.double(), expected.loss, rtol=1e-5, atol=1e-6 * scale)
    torch.testing.assert_close(lse.double(), expected.lse, rtol=1e-5, atol=1e-6 * scale)
