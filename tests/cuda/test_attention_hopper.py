"""The Hopper kernel of block_sparse_attention, executed on the CPU: which calls it takes, and what it makes of them."""

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

from tokcore import BlockMask
from tokcore.block_mask import BLOCKS
from tokcore.reference.block_sparse_attention import block_sparse_attention as reference_attention
from tokcore.testing import tables

DTYPES = (torch.bfloat16, torch.float16)
ERROR = {torch.bfloat16: 3e-3, torch.float16: 5e-4}
HEAD_DIMS = (64, 128, 256)  # one of each kernel
TABLE = tables()["block_sparse_attention"]
QUICK = [
    case.name
    for case in TABLE.cases
    if "quick" in case.tags and case.parameters["dtype"] in DTYPES and "grad" not in case.parameters
]


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cuda.SETUP, "capability", 90)
    with cuda.in_place_of_the_cpu():
        yield


def operands(
    M: int, N: int, D: int, dtype: torch.dtype, B: int = 1, H: int = 2, Hkv: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, H, M, D), (B, Hkv, N, D), (B, Hkv, N, D))
    q, k, v = (torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


def random_mask(shape: tuple[int, int], block: tuple[int, int], density: float = 0.5, heads: int = 2) -> BlockMask:
    rows, columns = -(-shape[0] // block[0]), -(-shape[1] // block[1])
    dense = torch.rand(1, heads, rows, columns, generator=torch.Generator().manual_seed(1)) < density
    return BlockMask.from_dense(dense, block, shape=shape)


def forward(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, causal: bool = False) -> tuple[Tensor, Tensor]:
    return cuda.forward(q, k, v, mask.bits, *mask.block, scale=q.size(-1) ** -0.5, causal=causal)


def assert_right(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, causal: bool = False) -> None:
    out, lse = forward(q, k, v, mask, causal)
    expected = reference_attention(q, k, v, mask, causal=causal)
    assert (out.double() - expected.out).norm() <= ERROR[q.dtype] * expected.out.norm()
    torch.testing.assert_close(lse.double(), expected.lse, rtol=1e-6, atol=1e-5)


def same_bits(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", QUICK)
def test_case(name: str) -> None:
    inputs = TABLE.make_inputs(TABLE.case(name), "cpu", 0)
    for operand in ("q", "k", "v"):
        inputs[operand].requires_grad_(False)
    assert_error_rule(TABLE, inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [32, 64, 72, 128, 136, 256])
@pytest.mark.parametrize(("M", "N"), [(1, 1), (63, 65), (64, 64), (129, 200), (200, 127)])
@pytest.mark.parametrize("causal", [False, True])
def test_sizes_at_the_edges_of_tiles(dtype: torch.dtype, D: int, M: int, N: int, causal: bool) -> None:
    assert_right(*operands(M, N, D, dtype, seed=M + N), random_mask((M, N), (64, 64), 0.8), causal)


@pytest.mark.parametrize("D", HEAD_DIMS)
@pytest.mark.parametrize("block", BLOCKS)
def test_every_order_of_threads_gives_the_same_bits(D: int, block: tuple[int, int]) -> None:
    inputs = operands(150, 700, D, torch.bfloat16)
    mask = random_mask((150, 700), block)
    expected = forward(*inputs, mask, causal=True)
    for policy in POLICIES[1:]:
        policy.use()
        assert same_bits(expected, forward(*inputs, mask, causal=True)), str(policy)
    Policy(workers=2).use()
    assert same_bits(expected, forward(*inputs, mask, causal=True))


def halves(pattern: str, columns: int) -> Tensor:
    """Which blocks the first and the second half of a tile of queries keep."""
    keeps = torch.zeros(2, columns, dtype=torch.bool)
    if pattern == "apart":  # neither keeps what the other does
        keeps[0, ::2] = keeps[1, 1::2] = True
    elif pattern == "ends":  # the first passes over more than the ring of slots holds while the second works
        keeps[0, [0, columns - 1]] = True
        keeps[1] = True
    elif pattern == "one after the other":
        keeps[0, : columns // 2] = True
        keeps[1, columns // 2 :] = True
    elif pattern == "second alone":
        keeps[1, 3::5] = True
    else:  # runs of every length up to 8 that the first half passes over
        place = 0
        for length in range(9):
            keeps[0, min(place, columns - 1)] = True
            place += length + 1
        keeps[1] = ~keeps[0]
        keeps[:, columns // 3] = True
    return keeps


@pytest.mark.parametrize("D", HEAD_DIMS)
@pytest.mark.parametrize("pattern", ["apart", "ends", "one after the other", "second alone", "runs"])
def test_halves_that_keep_different_blocks(D: int, pattern: str) -> None:
    M, N = 128, 64 * 52 - 5
    q, k, v = operands(M, N, D, torch.bfloat16, H=1)
    mask = BlockMask.from_dense(halves(pattern, 52)[None, None], (64, 64), shape=(M, N))
    swapped = BlockMask.from_dense(halves(pattern, 52).flip(0)[None, None], (64, 64), shape=(M, N))
    for policy in (POLICIES[0], POLICIES[4], POLICIES[8]):
        policy.use()
        assert_right(q, k, v, mask)
        assert_right(q, k, v, swapped)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("causal", [False, True])
def test_a_walk_over_many_words_of_a_mask(dtype: torch.dtype, block: tuple[int, int], causal: bool) -> None:
    M, N = 250, 6000
    columns = -(-N // block[1])
    dense = torch.zeros(1, 1, -(-M // block[0]), columns, dtype=torch.bool)
    for row in range(dense.size(2)):
        dense[0, 0, row, [(7 * row) % columns, 40, columns - 1 - row]] = row != 1
    assert_right(*operands(M, N, 32, dtype, H=1), BlockMask.from_dense(dense, block, shape=(M, N)), causal)


@pytest.mark.parametrize("placement", ["end", "start"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [32, 33, 72, 130, 255])
def test_nothing_outside_the_arrays_is_touched(
    dtype: torch.dtype, D: int, placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda.SETUP, "placement", placement)
    assert_right(*operands(67, 70, D, dtype), random_mask((67, 70), (64, 64), 0.8))


@pytest.mark.parametrize("D", HEAD_DIMS)
def test_rows_without_keys(D: int) -> None:
    q, k, v = operands(300, 200, D, torch.bfloat16)
    dense = torch.ones(1, 2, 5, 4, dtype=torch.bool)
    dense[0, 0, 2:] = dense[0, 1, 0] = False
    out, lse = forward(q, k, v, BlockMask.from_dense(dense, (64, 64), shape=(300, 200)))
    for empty in ((0, slice(128, None)), (1, slice(64))):
        assert not out[0][empty].any()
        assert (lse[0][empty] == -math.inf).all()
    assert lse[0, 0, :128].isfinite().all()
    assert lse[0, 1, 64:].isfinite().all()


def test_nan_and_inf_stay_where_they_are_seen() -> None:
    q, k, v = operands(200, 300, 128, torch.bfloat16, H=1)
    mask = BlockMask.from_dense(torch.eye(4, 5, dtype=torch.bool)[None, None], (64, 64), shape=(200, 300))
    q[0, 0, 70], k[0, 0, 3], v[0, 0, 130, 5] = math.nan, math.inf, math.nan
    k[0, 0, 299], v[0, 0, 299] = math.nan, math.nan  # a block that no query keeps
    out, _ = forward(q, k, v, mask)
    wrong = torch.zeros(200, 128, dtype=torch.bool)
    wrong[:64] = wrong[70] = wrong[128:192, 5] = True
    assert torch.equal(out[0, 0].isnan(), wrong)


def views(name: str, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor, Tensor], bool]:
    """Operands [2, 4, 150, 128], and whether TMA can address them."""
    q, k, v = operands(150, 150, 128, dtype, B=2, H=4, Hkv=4)
    if name == "rows of all heads together":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    elif name == "packed":
        q, k, v = torch.stack((q, k, v), 3).unbind(3)
    elif name == "misaligned":  # copied first
        q, k, v = (torch.cat((x, x[..., :3]), -1)[..., :128] for x in (q, k, v))
    elif name == "repeated heads":
        return (q, k[:, :1].expand_as(k), v), False
    elif name == "repeated rows":
        return (q, k, v[:, :, :1].expand_as(v)), False
    elif name == "repeated batch":
        return (q[:1].expand_as(q), k, v), False
    return (q, k, v), True


LAYOUTS = ("plain", "rows of all heads together", "packed", "misaligned", "repeated heads", "repeated rows")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*LAYOUTS, "repeated batch"])
def test_strides_choose_the_kernel(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, suits = views(name, dtype)
    mask = random_mask((150, 150), (64, 64), heads=4)
    assert_right(*inputs, mask)
    found = forward(*inputs, mask)
    assert same_bits(found, forward(*(x.contiguous() for x in inputs), mask)) == suits
    monkeypatch.setattr(cuda.SETUP, "capability", 80)
    assert same_bits(found, forward(*inputs, mask)) != suits


@pytest.mark.parametrize("capability", [80, 86, 89, 100, 120])
def test_other_gpus_run_the_portable_kernel(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, mask = operands(150, 150, 128, torch.bfloat16), random_mask((150, 150), (64, 64))
    hopper = forward(*inputs, mask)
    found: list[Any] = []
    for other in (80, capability):
        monkeypatch.setattr(cuda.SETUP, "capability", other)
        found.append(forward(*inputs, mask))
    assert same_bits(*found)
    assert not same_bits(hopper, found[0])


def test_lengths_of_nothing() -> None:
    for M, N in ((0, 70), (70, 0), (0, 0)):
        out, lse = forward(*operands(M, N, 64, torch.bfloat16), BlockMask.full((M, N)))
        assert not out.any()
        assert (lse == -math.inf).all()
