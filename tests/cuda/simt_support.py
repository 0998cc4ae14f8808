"""The module tokcore_simt and what every test of kernels executed on the CPU needs: policies and guarded tensors."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

_BUILT = Path(__file__).parents[2] / "build" / "tests" / "cuda"
sys.path.insert(0, os.environ.get("TOKCORE_SIMT_DIR", str(_BUILT)))
simt = importlib.import_module("tokcore_simt")


@dataclass(frozen=True)
class Policy:
    """In which order threads run and when asynchronous work is done."""

    order: str = "in_order"
    asynchrony: str = "late"
    seed: int = 0
    workers: int = 1

    def use(self) -> None:
        """Of all launches from now on."""
        simt.set_policy(order=self.order, asynchrony=self.asynchrony, seed=self.seed, workers=self.workers)

    def __str__(self) -> str:
        seed = f"-{self.seed}" if "random" in (self.order, self.asynchrony) else ""
        return f"{self.order}-{self.asynchrony}{seed}"


POLICIES = [
    Policy(order, asynchrony, seed=7)
    for order, asynchrony in itertools.product(("in_order", "reversed", "random"), ("late", "early", "random"))
]


def guarded_empty(
    shape: tuple[int, ...] | list[int], dtype: torch.dtype, name: str, placement: str = "end"
) -> torch.Tensor:
    """A tensor between inaccessible pages, every byte of it 0xff: NaN, or -1."""
    size = torch.Size(shape)
    if size.numel() == 0:
        return torch.empty(size, dtype=dtype)
    buffer = simt.GuardedBuffer(size.numel() * dtype.itemsize, placement=placement, name=name)
    return torch.frombuffer(buffer, dtype=dtype).view(size)


def guarded(tensor: torch.Tensor, name: str, placement: str = "end") -> torch.Tensor:
    """The same values, contiguous, between inaccessible pages; a kernel that writes to them fails."""
    if tensor.numel() == 0:
        return tensor.contiguous()
    buffer = simt.GuardedBuffer(tensor.numel() * tensor.element_size(), placement=placement, name=name)
    copy = torch.frombuffer(buffer, dtype=tensor.dtype).view(tensor.shape)
    copy.copy_(tensor)
    buffer.protect()
    return copy
