"""The gradient filter's contract: what is dropped, how far it may move a gradient, and what rate is reported."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import tensors
from torch import Tensor

import tokcore
from tokcore.reference.linear_cross_entropy import linear_cross_entropy as reference_loss
from tokcore.reference.linear_logprobs import entropy_filter_eps, logits
from tokcore.testing.cases._classifier import classifier_tensors
from tokcore.testing.table import Case

TILE = 32


def peaked(T: int, V: int, C: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    parameters = {"T": T, "V": V, "C": C, "dtype": dtype, "peaked": True}
    inputs = classifier_tensors(Case("peaked", parameters), "cpu", 0)
    return inputs["e"], inputs["c"], inputs["targets"]


def eps_in_a_gap(p: Tensor, near: float) -> float:
    """A threshold close to ``near`` that no probability is close to, so that rounding cannot decide."""
    logs = p.detach().double().log().flatten()
    middle = math.log(near)
    ends = torch.tensor([middle - 0.5, middle + 0.5], dtype=torch.float64)
    logs = torch.cat([logs[(logs - middle).abs() < 0.5], ends]).sort().values
    gaps = logs.diff()
    widest = int(gaps.argmax())
    assert gaps[widest] > 1e-3
    return float(((logs[widest] + logs[widest + 1]) / 2).exp())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_elements_below_eps_are_dropped_and_no_others(dtype: torch.dtype, entropy: bool, smoothing: float) -> None:
    e, c, targets, bias = tensors(45, 300, 24, dtype)
    e = (3 * e.detach()).requires_grad_()
    targets[::7] = -100
    p = logits(e, c, bias).softmax(-1)
    near = 1e-3
    eps = eps_in_a_gap(p[targets != -100], entropy_filter_eps(near, 300) if entropy else near)
    if entropy:  # the public threshold whose lowered value is the gap
        low, high = eps, 1.0
        for _ in range(200):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if entropy_filter_eps(middle, 300) < eps else (low, middle)
        eps = low
    options = {"label_smoothing": smoothing, "return_entropy": entropy, "filter_eps": eps, "z_loss": 0.1}
    result = tokcore.linear_cross_entropy(e, c, targets, bias, **options)  # type: ignore[arg-type]
    expected = reference_loss(e, c, targets, bias, **options)  # type: ignore[arg-type]
    exact = reference_loss(e, c, targets, bias, **{**options, "filter_eps": None})  # type: ignore[arg-type]
    mine = result[0] + result[1].sum() if entropy else result
    theirs = expected.loss + (expected.entropy.sum() if entropy else 0)
    unfiltered = exact.loss + (exact.entropy.sum() if entropy else 0)
    assert isinstance(mine, Tensor)
    leaves = (e, c, bias)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}[dtype]
    for got, wanted, full in zip(
        *(torch.autograd.grad(x, leaves, retain_graph=True) for x in (mine, theirs, unfiltered)), strict=True
    ):
        scale = wanted.abs().max().item()
        assert (got - wanted).abs().max() <= tolerance * scale
        if dtype == torch.float32:  # the filter's effect is far above the tolerance there
            assert (got - full).abs().max() > 4 * tolerance * scale


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("entropy", [False, True])
def test_filtered_gradients_stay_near_the_exact_ones(dtype: torch.dtype, entropy: bool) -> None:
    e, c, targets = peaked(96, 4096, 64, dtype)
    e.requires_grad_()
    c.requires_grad_()
    eps = 2.0**-12 if dtype == torch.bfloat16 else 2.0**-15
    upstream = torch.randn(96, generator=torch.Generator().manual_seed(3))

    def gradients(filter_eps: float | None) -> tuple[Tensor, ...]:
        result = tokcore.linear_cross_entropy(
            e, c, targets, reduction="none", filter_eps=filter_eps, return_entropy=entropy
        )
        total = ((result[0] + result[1] if entropy else result) * upstream).sum()
        return tuple(x.double() for x in torch.autograd.grad(total, (e, c)))

    share = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]  # both gradients are rounded to the dtype
    (filtered_e, filtered_c), (exact_e, exact_c) = gradients(eps), gradients(None)
    bound = 2 * eps if entropy else eps  # p and |p (log p + H)| are bounded by eps each
    bound_e = bound * upstream.double().abs().sum() * c.double().norm() + 2 * share * exact_e.norm()
    bound_c = bound * (upstream.double().abs() * e.double().norm(dim=1)).sum()
    bound_c = bound_c + 2 * share * exact_c.norm(dim=1).max()
    assert (filtered_e - exact_e).norm() <= bound_e
    assert (filtered_c - exact_c).norm(dim=1).max() <= bound_c


def definition(z: np.ndarray, targets: np.ndarray, eps: float) -> np.ndarray:
    """kept [positions, tiles]: a tile's largest p is not below eps, or the target is in it."""
    T, V = z.shape
    tiles = -(-V // TILE)
    peak = z.max(1, keepdims=True)
    lse = peak + np.log(np.exp(z - peak).sum(1, keepdims=True))
    padded = np.full((T, tiles * TILE), -np.inf)
    padded[:, :V] = z
    largest = padded.reshape(T, tiles, TILE).max(2)
    kept: np.ndarray = np.exp(largest - lse) >= eps
    kept[np.arange(T), targets // TILE] = True
    return kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("T", "V", "ignored"), [(1, 1, 0), (7, 33, 0), (70, 1000, 20), (33, 513, 32)])
def test_reported_rate_is_the_share_of_dropped_tiles(dtype: torch.dtype, T: int, V: int, ignored: int) -> None:
    # Small integers: logits, and so the tile maxima, are exact in every format.
    generator = torch.Generator().manual_seed(T * V)
    e = torch.randint(-3, 4, (T, 5), generator=generator).to(dtype).requires_grad_()
    c = torch.randint(-2, 3, (V, 5), generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(V, (T,), generator=generator)
    targets[torch.randperm(T, generator=generator)[:ignored]] = -100
    active = targets != -100
    z = (e.detach().double() @ c.detach().double().t())[active].numpy()
    eps = eps_in_a_gap(torch.from_numpy(z).softmax(-1), 1e-2) if V > 1 else 0.01
    _, rate = tokcore.linear_cross_entropy(e, c, targets, filter_eps=eps, return_filter_rate=True)
    kept = definition(z, targets[active].numpy(), eps)
    assert rate.item() == pytest.approx(1.0 - kept.mean(), abs=1e-7)
    if V > 500:
        assert 0.05 < rate.item() < 0.95


def test_kept_tiles_cover_the_definition_and_little_more() -> None:
    e, c, targets, _ = tensors(70, 2000, 24, torch.bfloat16, grad=False)
    e = 4 * e
    eps = 1e-3
    kept = torch.ops.tokcore.linear_logprobs_forward(e, c, targets.unsqueeze(1), filter_eps=eps)[6]
    bits = np.unpackbits(kept.numpy().view(np.uint8), axis=1, bitorder="little")[:, :70].T.astype(bool)
    z = (e.double() @ c.double().t()).numpy()
    must = definition(z, targets.numpy(), eps * (1 + 1e-4))
    assert (bits | ~must).all()
    # Maxima are held in 16 bits, rounded up by at most 2^-7 of their size.
    slack = 2.0**-7 * float(np.abs(z).max()) + 1e-4
    may = definition(z, targets.numpy(), eps * math.exp(-slack))
    assert (may | ~bits).all()
    assert 0.1 < bits.mean() < 0.9


def test_bits_beyond_the_active_positions_are_zero() -> None:
    e, c, targets, _ = tensors(70, 100, 8, torch.bfloat16, grad=False)
    targets[::2] = -100
    kept = torch.ops.tokcore.linear_logprobs_forward(e, c, targets.unsqueeze(1), ignore_index=-100, filter_eps=1e-9)[6]
    bits = np.unpackbits(kept.numpy().view(np.uint8), axis=1, bitorder="little")
    assert bits[:, :35].all()
    assert not bits[:, 35:].any()


def test_a_threshold_of_zero_is_exact() -> None:
    e, c, targets, _ = tensors(40, 300, 24, torch.bfloat16)
    zero, rate = tokcore.linear_cross_entropy(e, c, targets, filter_eps=0.0, return_filter_rate=True)
    exact = tokcore.linear_cross_entropy(e, c, targets, filter_eps=None)
    assert isinstance(exact, Tensor)
    assert rate == 0
    for got, expected in zip(torch.autograd.grad(zero, (e, c)), torch.autograd.grad(exact, (e, c)), strict=True):
        assert torch.equal(got, expected)
