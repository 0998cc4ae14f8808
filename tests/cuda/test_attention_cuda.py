"""The CUDA kernels of the attention family, executed on the CPU: the case tables, and what launchers promise beside."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))

import attention_simt as cuda
import pytest
import torch
from simt_support import POLICIES, Policy
from support import assert_error_rule
from torch import Tensor

from tokcore import BlockMask, block_sparse_attention
from tokcore.block_mask import BLOCKS
from tokcore.reference.block_sparse_attention import block_sparse_attention as reference_attention
from tokcore.testing import tables

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


TABLE = tables()["block_sparse_attention"]
QUICK = [case.name for case in TABLE.cases if "quick" in case.tags][::3]  # of every dtype others


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with cuda.in_place_of_the_cpu():
        yield


def operands(
    M: int, N: int, D: int, dtype: torch.dtype, H: int = 2, Hkv: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, H, M, D), (1, Hkv, N, D), (1, Hkv, N, D))
    q, k, v = (torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


def random_mask(shape: tuple[int, int], block: tuple[int, int], density: float = 0.5, heads: int = 2) -> BlockMask:
    rows, columns = -(-shape[0] // block[0]), -(-shape[1] // block[1])
    dense = torch.rand(1, heads, rows, columns, generator=torch.Generator().manual_seed(1)) < density
    return BlockMask.from_dense(dense, block, shape=shape)


def everything(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, **options: Any) -> dict[str, Tensor]:
    """Results and gradients by name."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out, lse = block_sparse_attention(leaves[0], leaves[1], leaves[2], mask, return_lse=True, **options)
    generator = torch.Generator().manual_seed(5)
    upstream = (torch.randn(out.shape, generator=generator).to(out.dtype), torch.randn(lse.shape, generator=generator))
    grads = torch.autograd.grad((out, lse), leaves, upstream)
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(("dq", "dk", "dv"), grads, strict=True))}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)) for name in a)


@pytest.mark.parametrize("name", QUICK)
def test_case(name: str) -> None:
    assert_error_rule(TABLE, TABLE.make_inputs(TABLE.case(name), "cpu", 0))


# Head sizes and lengths at the edges of tiles, and blocks of which several share a tile of queries or of keys.
ORDER_CASES = [(150, 200, 64), (70, 130, 128), (65, 66, 200)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("M", "N", "D"), ORDER_CASES)
def test_every_order_of_threads_gives_the_same_bits(dtype: torch.dtype, M: int, N: int, D: int) -> None:
    inputs = operands(M, N, D, dtype)
    mask = random_mask((M, N), (64, 64))
    expected = everything(*inputs, mask, causal=True)
    for policy in POLICIES[1:]:
        policy.use()
        assert same_bits(expected, everything(*inputs, mask, causal=True)), str(policy)
    Policy(workers=2).use()
    assert same_bits(expected, everything(*inputs, mask, causal=True))


@pytest.mark.parametrize("placement", ["end", "start"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [32, 33, 72, 96, 130, 255])
def test_nothing_outside_the_arrays_is_touched(
    dtype: torch.dtype, D: int, placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda.SETUP, "placement", placement)
    q, k, v = operands(67, 70, D, dtype)
    mask = random_mask((67, 70), (64, 64), 0.8)
    found, expected = everything(q, k, v, mask), reference_attention(q, k, v, mask)
    error = (found["out"].double() - expected.out).norm() / expected.out.norm()
    assert error < {torch.float32: 1e-6, torch.bfloat16: 3e-3, torch.float16: 5e-4}[dtype]
    torch.testing.assert_close(found["lse"].double(), expected.lse, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("causal", [False, True])
def test_a_walk_over_many_words_of_a_mask(dtype: torch.dtype, block: tuple[int, int], causal: bool) -> None:
    # Words without any bit, single bits, and rows of which the two halves of a tile keep different blocks.
    M, N = 250, 6000
    q, k, v = operands(M, N, 32, dtype, H=1)
    columns = -(-N // block[1])
    dense = torch.zeros(1, 1, -(-M // block[0]), columns, dtype=torch.bool)
    for row in range(dense.size(2)):
        dense[0, 0, row, [(7 * row) % columns, 40, columns - 1 - row]] = row != 1
    mask = BlockMask.from_dense(dense, block, shape=(M, N))
    found, expected = everything(q, k, v, mask, causal=causal), reference_attention(q, k, v, mask, causal=causal)
    assert ((found["out"].double() - expected.out).norm() / expected.out.norm()) < 4e-3
    torch.testing.assert_close(found["lse"].double(), expected.lse, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("block", BLOCKS)
def test_bits_past_the_last_block_mean_nothing(block: tuple[int, int]) -> None:
    q, k, v = operands(130, 200, 64, torch.bfloat16)
    mask = random_mask((130, 200), block)
    spoiled = BlockMask(mask.bits | -(1 << -(-200 // block[1])), block, shape=(130, 200))
    assert same_bits(everything(q, k, v, spoiled), everything(q, k, v, mask))


def test_lengths_of_nothing() -> None:
    for M, N in ((0, 70), (70, 0), (0, 0)):
        q, k, v = operands(M, N, 64, torch.bfloat16)
        found = everything(q, k, v, BlockMask.full((M, N)))
        assert (found.pop("lse") == -math.inf).all()
        assert not [name for name, value in found.items() if value.any()]
