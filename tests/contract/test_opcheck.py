"""Registration of the ops: schema, fake, autograd and traced behaviour, as ``torch.library.opcheck`` proves it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokcore

OPTIONS: list[dict[str, Any]] = [
    {},
    {"entropy": True, "logit_sum": True, "topk": 3, "filter_eps": 0.01, "ignore_index": -100},
    {"softcap": 5.0, "temperature": 0.7, "seq_len": 6, "shift": 2},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "all outputs", "shift"])
@pytest.mark.parametrize("optional", [False, True])
def test_forward(dtype: torch.dtype, options: dict[str, Any], optional: bool) -> None:
    torch.manual_seed(0)
    e = torch.randn(12, 8, dtype=dtype, requires_grad=True)
    c = torch.randn(40, 8, dtype=dtype, requires_grad=True)
    indices = torch.randint(40, (12, 2))
    extra = (torch.randn(40, requires_grad=True), torch.rand(40)) if optional else ()
    torch.library.opcheck(torch.ops.tokcore.linear_logprobs_forward, (e, c, indices, *extra), options)


@pytest.mark.parametrize("needs", [(True, True, True), (True, False, False), (False, True, False), (False,) * 3])
def test_backward(needs: tuple[bool, bool, bool]) -> None:
    torch.manual_seed(0)
    e, c, bias = torch.randn(12, 8), torch.randn(40, 8), torch.randn(40)
    indices = torch.randint(40, (12, 2))
    options: dict[str, Any] = {"ignore_index": -100, "filter_eps": 0.01}
    lse, _, gathered, _, _, _, kept = torch.ops.tokcore.linear_logprobs_forward(
        e, c, indices, bias, entropy=True, **options
    )
    vectors = [torch.randn(12), torch.randn(12, 2), torch.randn(12), torch.randn(12)]
    need_e, need_c, need_bias = needs
    torch.library.opcheck(
        torch.ops.tokcore.linear_logprobs_backward,
        (e, c, indices, gathered, lse, kept, *vectors, bias, torch.rand(40)),
        {**options, "need_e": need_e, "need_c": need_c, "need_bias": need_bias},
    )


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("recompute", {"linear_logprobs_forward", "linear_logprobs_backward"}),
        ("chunked", {"linear_cross_entropy_chunked"}),
    ],
)
def test_gradients_are_traced_with_symbolic_shapes(strategy: str, expected: set[str]) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    e, c, targets = torch.randn(6, 8, requires_grad=True), torch.randn(40, 8), torch.randint(40, (6,))

    def gradient(states: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = tokcore.linear_cross_entropy(states, classes, labels, strategy=strategy)
        assert isinstance(loss, torch.Tensor)
        return torch.autograd.grad(loss, states)[0]

    graph = make_fx(gradient, tracing_mode="symbolic")(e, c, targets)
    assert torch.equal(graph(e, c, targets), gradient(e, c, targets))
    names = {str(node.target) for node in graph.graph.nodes}
    assert {f"tokcore.{name}.default" for name in expected} <= names


@pytest.mark.parametrize("options", [{}, {"ignore_index": 3, "softcap": 5.0, "seq_len": 6, "shift": 2}], ids=str)
@pytest.mark.parametrize("optional", [False, True])
def test_chunked(options: dict[str, Any], optional: bool) -> None:
    torch.manual_seed(0)
    e, c = torch.randn(12, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    vectors = torch.rand(3 if optional else 1, 12)
    extra = (torch.randn(40, requires_grad=True), torch.rand(40)) if optional else ()
    torch.library.opcheck(
        torch.ops.tokcore.linear_cross_entropy_chunked,
        (e, c, torch.randint(40, (12,)), *vectors, *extra),
        {**options, "need_bias": optional},
    )
