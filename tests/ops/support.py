"""Helpers of the op tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tokcore.testing.numerics import compare, failures
from tokcore.testing.table import Inputs, OpTable

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def tensors(
    T: int, V: int, C: int, dtype: torch.dtype = torch.float32, seed: int = 0, grad: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """e [T, C], c [V, C], targets [T], bias [V] with logits of standard deviation around 1."""
    generator = torch.Generator().manual_seed(seed)
    e = torch.randn(T, C, generator=generator).to(dtype)
    c = (torch.randn(V, C, generator=generator) / math.sqrt(max(C, 1))).to(dtype)
    bias = torch.randn(V, generator=generator).to(dtype)
    targets = torch.randint(V, (T,), generator=generator)
    return e.requires_grad_(grad), c.requires_grad_(grad), targets, bias.requires_grad_(grad)


def grads(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, retain_graph=True)


def bits(x: Tensor) -> Tensor:
    """The bit patterns: NaN equals itself, and -0 differs from 0."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.detach().contiguous().view(integer)


def assert_bitwise(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    different = [name for name in got if not torch.equal(bits(got[name]), bits(expected[name]))]
    assert not different


def assert_error_rule(table: OpTable, inputs: Inputs) -> None:
    comparisons = compare(table.run(inputs), table.composition(inputs), table.reference(inputs))
    assert comparisons
    assert not failures(comparisons), "\n" + failures(comparisons)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def results(call: Callable[..., Any], leaves: dict[str, Tensor], upstream_seed: int = 9) -> dict[str, Tensor]:
    """Named outputs of ``call(**leaves)`` and the gradients of a random combination of the real-valued ones."""
    outputs: dict[str, Tensor] = call(**leaves)
    generator = torch.Generator().manual_seed(upstream_seed)
    total = torch.zeros(())
    for output in outputs.values():
        if output.requires_grad:
            total = total + (output * torch.randn(output.shape, generator=generator)).sum()
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    gradients = torch.autograd.grad(total, list(wanted.values()))
    return {**outputs, **{f"grad_{name}": grad for name, grad in zip(wanted, gradients, strict=True)}}
