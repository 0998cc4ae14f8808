"""Checks of the draft builders: what their C++ entries check, in their order and wording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokcore.ops import _checks as checks
from tokcore.ops import _kv_checks as kv

MOST_NODES = 256
MOST_CANDIDATES = 64

Argument = tuple[str, object, torch.dtype, int]  # name, tensor, dtype, dimensions


def check_tensors(require: checks.Require, arguments: Sequence[Argument], of_wrapper: bool = False) -> None:
    """Dtypes, then devices (those of the first), then ranks; a wrapper first asks whether they are tensors at all."""
    tensors: list[tuple[str, Tensor, int]] = []
    for name, value, _, rank in arguments:
        checks._tensor(require, name, value)
        assert isinstance(value, Tensor)
        tensors.append((name, value, rank))
    for name, value, dtype, _ in arguments:
        assert isinstance(value, Tensor)
        checks._dtype(require, name, value, (dtype,))
    first_name, first, _ = tensors[0]
    if of_wrapper:
        kv.check_device(require, first_name, first)
    for name, value, _ in tensors:
        kv.check_same_device(require, name, value, first, first_name)
    for name, value, rank in tensors:
        checks._rank(require, name, value, rank)


def check_range(require: checks.Require, name: str, value: Any, low: int, high: Any, note: str) -> None:
    """An integer in [low, high]."""
    require(value >= low and value <= high, name, lambda: f"a value in [{low}, {high}] ({note})", lambda: f"{value}")


def check_max_nodes(require: checks.Require, value: Any) -> None:
    """Nodes of the largest tree."""
    check_range(require, "max_nodes", value, 1, MOST_NODES, "nodes of a tree")


def check_contiguous(require: checks.Require, name: str, value: Tensor) -> None:
    """What an op changes, or walks through by token, is dense."""
    require(value.is_contiguous(), name, lambda: "a contiguous tensor", lambda: "strides")


def empty_trees(like: Tensor, B: Any, N: Any) -> tuple[Tensor, Tensor, Tensor]:
    """parents, tokens, counts."""
    return (
        like.new_empty((B, N), dtype=torch.int32),
        like.new_empty((B, N), dtype=torch.int64),
        like.new_empty((B,), dtype=torch.int32),
    )


def call(op: str, call_kernel: Callable[[], Any]) -> Any:
    """Calls an operator; what only its kernel can find wrong with the values becomes a ValueError."""
    try:
        return call_kernel()
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        if not text.startswith(f"tokcore.{op}: argument"):
            raise
        raise ValueError(text) from None
