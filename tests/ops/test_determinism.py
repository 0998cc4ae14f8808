"""Bitwise repeatable whatever the thread count; a row is bitwise what it is alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import DTYPES, assert_bitwise, bits, results, tensors, threads
from torch import Tensor

import tokcore


def everything(e: Tensor, c: Tensor, bias: Tensor, targets: Tensor, **options: Any) -> dict[str, Tensor]:
    loss = tokcore.linear_cross_entropy(
        e, c, targets, bias, reduction="none", return_lse=True, return_entropy=True, label_smoothing=0.1, **options
    )
    gather = torch.stack([targets, targets.flip(0)], -1)
    probs = tokcore.linear_logprobs(e, c, targets, bias, entropy=True, gather=gather, topk=5, **options)
    named = dict(zip(("loss", "loss_lse", "loss_entropy"), loss, strict=True))
    return named | {name: value for name, value in probs._asdict().items() if value is not None}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("filter_eps", [None, 1e-3])
@pytest.mark.parametrize("shape", [(1, 5000, 64), (3, 777, 33), (129, 2049, 65), (700, 300, 40)])
def test_thread_count_changes_no_bit(dtype: torch.dtype, filter_eps: float | None, shape: tuple[int, int, int]) -> None:
    e, c, targets, bias = tensors(*shape, dtype)
    leaves = {"e": (3 * e.detach()).requires_grad_(), "c": c, "bias": bias, "targets": targets}
    found = []
    for count in (1, 2, 3, 2):
        with threads(count):
            found.append(results(lambda **x: everything(**x, filter_eps=filter_eps), leaves))
    for other in found[1:]:
        assert_bitwise(other, found[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(("V", "C"), [(1000, 40), (33, 7), (4099, 128)])
def test_a_row_is_what_it_is_alone(dtype: torch.dtype, softcap: float | None, V: int, C: int) -> None:
    e, c, targets, bias = tensors(300, V, C, dtype, grad=False)
    gather = torch.randint(V, (300, 3), generator=torch.Generator().manual_seed(1))

    def rows(which: slice) -> tk:
        return tokcore.linear_logprobs(
            e[which], c, targets[which], bias, entropy=True, gather=gather[which], topk=4, softcap=softcap
        )

    full = rows(slice(None))
    parts = [slice(i, i + 1) for i in (0, 1, 31, 32, 63, 150, 255, 256, 299)]
    parts += [slice(0, 7), slice(5, 70), slice(33, 64), slice(100, 300), slice(17, 273)]
    for part in parts:
        for name, whole, alone in zip(full._fields, full, rows(part), strict=True):
            assert whole is not None
            assert alone is not None
            assert torch.equal(bits(whole[part]), bits(alone)), (name, part)


tk = tokcore.LinearLogprobs


@pytest.mark.parametrize("dtype", DTYPES)
def test_ignored_neighbours_change_no_bit(dtype: torch.dtype) -> None:
    # Ignoring positions packs the others differently; each row's results and gradient stay.
    e, c, targets, bias = tensors(200, 1500, 48, dtype)
    some = targets.clone()
    some[torch.rand(200, generator=torch.Generator().manual_seed(2)) < 0.6] = -100
    kept = some != -100
    found = []
    for labels in (targets, some):
        result = tokcore.linear_cross_entropy(e, c, labels, bias, reduction="none", return_lse=True, filter_eps=None)
        (grad,) = torch.autograd.grad(result[0].sum(), e)
        found.append((*(x.detach()[kept] for x in result), grad[kept]))
    for full, part in zip(*found, strict=True):
        assert torch.equal(bits(full), bits(part))


@pytest.mark.parametrize("dtype", DTYPES)
def test_shift_changes_no_bit(dtype: torch.dtype) -> None:
    e, c, targets, _ = tensors(60, 500, 48, dtype, grad=False)
    e, targets = e.view(3, 20, 48), targets.view(3, 20)
    shifted = tokcore.linear_cross_entropy(e, c, targets, reduction="none", shift=2)
    sliced = tokcore.linear_cross_entropy(e[:, :-2].contiguous(), c, targets[:, 2:].contiguous(), reduction="none")
    assert isinstance(shifted, Tensor)
    assert isinstance(sliced, Tensor)
    assert torch.equal(bits(shifted), bits(sliced))
