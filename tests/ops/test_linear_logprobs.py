"""What ``linear_logprobs`` returns, against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import DTYPES, tensors

import tokcore
from tokcore.testing.cases._classifier import classifier_tensors
from tokcore.testing.table import Case


def test_fields() -> None:
    e, c, targets, bias = tensors(12, 40, 8, grad=False)
    gather = torch.randint(40, (3, 4, 5), generator=torch.Generator().manual_seed(1))
    e, targets = e.view(3, 4, 8), targets.view(3, 4)
    result = tokcore.linear_logprobs(e, c, targets, bias, entropy=True, gather=gather, topk=6)
    logp = F.log_softmax(F.linear(e, c, bias), -1)
    values, indices = logp.topk(6)
    expected = {
        "logprob": logp.gather(-1, targets.unsqueeze(-1)).squeeze(-1),
        "lse": F.linear(e, c, bias).logsumexp(-1),
        "entropy": torch.distributions.Categorical(logits=logp).entropy(),
        "gathered": logp.gather(-1, gather),
        "topk_values": values,
        "topk_indices": indices,
    }
    assert result._fields == tuple(expected)
    for name, value in expected.items():
        torch.testing.assert_close(getattr(result, name), value, rtol=2e-6, atol=5e-6)


def test_what_is_not_asked_for_is_none() -> None:
    e, c, targets, _ = tensors(12, 40, 8, grad=False)
    result = tokcore.linear_logprobs(e, c, targets)
    assert [value is None for value in result] == [False, False, True, True, True, True]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("V", "topk"), [(1, 1), (31, 31), (33, 8), (513, 8), (4099, 64)])
def test_topk_is_sorted_and_breaks_ties_by_the_lower_index(dtype: torch.dtype, V: int, topk: int) -> None:
    # Integers: logits are exact, and equal ones are many.
    generator = torch.Generator().manual_seed(V)
    e = torch.randint(-2, 3, (35, 6), generator=generator).to(dtype)
    c = torch.randint(-2, 3, (V, 6), generator=generator).to(dtype)
    result = tokcore.linear_logprobs(e, c, torch.zeros(35, dtype=torch.int64), topk=topk)
    order = torch.sort(e.float() @ c.float().t(), dim=-1, descending=True, stable=True)
    assert result.topk_indices is not None
    assert result.topk_values is not None
    assert torch.equal(result.topk_indices, order.indices[:, :topk])
    logits = result.topk_values + result.lse.unsqueeze(1)
    torch.testing.assert_close(logits, order.values[:, :topk], rtol=1e-6, atol=1e-5)


def test_lse_errs_to_neither_side() -> None:
    # Peaked inputs: lse is large, and a loss of many positions would add up what is always rounded the same way.
    parameters = {"T": 2000, "V": 2049, "C": 16, "dtype": torch.float32, "peaked": True}
    inputs = classifier_tensors(Case("peaked", parameters), "cpu", 0)
    e, c = inputs["e"].detach(), inputs["c"].detach()
    exact = (e.double() @ c.double().t()).logsumexp(-1)
    mine = (tokcore.linear_logprobs(e, c, inputs["targets"]).lse - exact).mean().abs()
    theirs = (F.linear(e, c).logsumexp(-1) - exact).mean().abs()
    assert mine <= 2 * theirs + torch.finfo(torch.float32).eps / 16 * exact.mean()


def test_gathered_target_is_its_logprob_bitwise() -> None:
    e, c, targets, bias = tensors(40, 100, 24, torch.bfloat16, grad=False)
    result = tokcore.linear_logprobs(e, c, targets, bias, gather=targets.unsqueeze(-1))
    assert result.gathered is not None
    assert torch.equal(result.gathered[:, 0], result.logprob)


def test_repeated_gathers_add_their_gradients() -> None:
    e, c, targets, _ = tensors(5, 40, 8)
    gather = targets.unsqueeze(-1).expand(5, 3)
    result = tokcore.linear_logprobs(e, c, targets, gather=gather)
    assert result.gathered is not None
    repeated = torch.autograd.grad(result.gathered.sum(), (e, c))
    single = torch.autograd.grad(3 * tokcore.linear_logprobs(e, c, targets).logprob.sum(), (e, c))
    for got, expected in zip(repeated, single, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_logprob_is_minus_the_loss() -> None:
    e, c, targets, bias = tensors(40, 100, 24, torch.bfloat16, grad=False)
    loss = tokcore.linear_cross_entropy(e, c, targets, bias, reduction="none", softcap=4.0, temperature=0.5)
    assert isinstance(loss, torch.Tensor)
    assert torch.equal(-loss, tokcore.linear_logprobs(e, c, targets, bias, softcap=4.0, temperature=0.5).logprob)


def test_entropy_of_equal_logits_is_log_v() -> None:
    c = torch.ones(777, 16)
    result = tokcore.linear_logprobs(torch.randn(9, 16), c, torch.arange(9), entropy=True)
    assert result.entropy is not None
    expected = torch.full((9,), 777.0).log()
    torch.testing.assert_close(result.entropy, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(result.logprob, -expected, rtol=1e-6, atol=0)
