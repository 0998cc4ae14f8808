"""``torch.compile`` without graph breaks or needless compilations, and ``torch.export``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import tokcore

LOSS_OPTIONS: list[dict[str, Any]] = [
    {},
    {"shift": 1, "return_lse": True, "return_entropy": True, "filter_eps": 0.01, "return_filter_rate": True},
    {"softcap": 5.0, "temperature": 0.7, "label_smoothing": 0.1, "z_loss": 0.01, "reduction": "none"},
    {"strategy": "chunked", "shift": 2, "softcap": 5.0, "label_smoothing": 0.1, "z_loss": 0.01},
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def compilations() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def tensors(B: int, S: int, V: int, C: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(B * S)
    e = torch.randn(B, S, C, generator=generator).requires_grad_()
    c = torch.randn(V, C, generator=generator).requires_grad_()
    bias = torch.randn(V, generator=generator).requires_grad_()
    targets = torch.randint(V, (B, S), generator=generator)
    targets[0, 1] = -100
    return e, c, targets, bias


def total(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    parts = result if isinstance(result, tuple) else (result,)
    return torch.stack([part.sum() for part in parts]).sum()


def compare(compiled: Callable[..., Tensor], eager: Callable[..., Tensor], *inputs: Tensor) -> None:
    leaves = [x for x in inputs if x.requires_grad]
    got, expected = compiled(*inputs), eager(*inputs)
    torch.testing.assert_close(got, expected)
    for mine, theirs in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(mine, theirs)


SHAPES = [(2 + i % 4, 5 + 7 * i, 40 + 13 * i, 8 + 3 * i) for i in range(10)]


@pytest.mark.parametrize("options", LOSS_OPTIONS, ids=["plain", "shift", "options", "chunked"])
def test_ten_shapes_of_the_loss_take_at_most_two_compilations(options: dict[str, Any]) -> None:
    def call(e: Tensor, c: Tensor, targets: Tensor, bias: Tensor) -> Tensor:
        return total(tokcore.linear_cross_entropy(e, c, targets, bias, **options))

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in SHAPES:
        compare(compiled, call, *tensors(*shape))
    assert 1 <= compilations() <= 2


def test_ten_shapes_of_the_logprobs_take_at_most_two_compilations() -> None:
    def call(e: Tensor, c: Tensor, targets: Tensor, bias: Tensor, gather: Tensor) -> Tensor:
        result = tokcore.linear_logprobs(e, c, targets, bias, entropy=True, gather=gather, topk=3)
        return total(tuple(x for x in result if x is not None and x.is_floating_point()))

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in SHAPES:
        e, c, targets, bias = tensors(*shape)
        targets = targets.clamp(min=0)
        compare(compiled, call, e, c, targets, bias, torch.stack([targets, targets + 1], -1) % c.size(0))
    assert 1 <= compilations() <= 2


def test_default_backend() -> None:
    def call(e: Tensor, c: Tensor, targets: Tensor, bias: Tensor) -> Tensor:
        return total(tokcore.linear_cross_entropy(e, c, targets, bias, shift=1, softcap=5.0, return_entropy=True))

    compare(torch.compile(call, fullgraph=True, dynamic=True), call, *tensors(2, 9, 40, 8))


def test_module_inside_a_compiled_model() -> None:
    loss = tokcore.nn.LinearCrossEntropyLoss(8, 40)

    def call(e: Tensor, targets: Tensor) -> Tensor:
        result: Tensor = loss(torch.nn.functional.gelu(e), targets)
        return result

    e, _, targets, _ = tensors(2, 9, 40, 8)
    compare(torch.compile(call, fullgraph=True, backend="aot_eager"), call, e, targets)


def test_bad_arguments_raise_under_compile_too() -> None:
    compiled = torch.compile(tokcore.linear_cross_entropy, backend="aot_eager")
    e, c, targets, _ = tensors(2, 9, 40, 8)
    with pytest.raises(ValueError, match=r"argument 'temperature': expected a finite value > 0, got -1\.0"):
        compiled(e, c, targets, temperature=-1.0)


@pytest.mark.parametrize("strategy", ["recompute", "chunked"])
def test_targets_out_of_range_raise_under_compile_too(strategy: str) -> None:
    compiled = torch.compile(tokcore.linear_cross_entropy, fullgraph=True, backend="aot_eager")
    e, c, targets, _ = tensors(2, 9, 40, 8)
    targets[1, 2] = 40
    with pytest.raises(RuntimeError, match=r"argument '\w+': expected values in \[0, 40\) .* got 40 at position 11"):
        compiled(e, c, targets, strategy=strategy)


class Scorer(torch.nn.Module):
    def forward(self, e: Tensor, c: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        result = tokcore.linear_logprobs(e, c, targets, entropy=True, topk=2)
        assert result.entropy is not None
        assert result.topk_indices is not None
        return result.logprob, result.entropy, result.topk_indices


def test_export_with_dynamic_shapes() -> None:
    e, c, targets, _ = (x.detach() for x in tensors(3, 9, 40, 8))
    targets = targets.clamp(min=0)
    auto = torch.export.Dim.AUTO
    shapes = {"e": {0: auto, 1: auto}, "c": {0: auto}, "targets": {0: auto, 1: auto}}
    program = torch.export.export(Scorer(), (e, c, targets), dynamic_shapes=shapes)
    assert any("linear_logprobs_forward" in str(node.target) for node in program.graph.nodes)
    for shape in ((3, 9, 40, 8), (5, 4, 77, 8)):
        e, c, targets, _ = (x.detach() for x in tensors(*shape))
        targets = targets.clamp(min=0)
        for got, expected in zip(program.module()(e, c, targets), Scorer()(e, c, targets), strict=True):
            assert torch.equal(got, expected)
