"""Block masks: packing, every constructor, set algebra, bad input."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokcore import BlockMask
from tokcore.block_mask import BLOCKS


def random_dense(
    shape: tuple[int, int], block: tuple[int, int], batch: int = 1, heads: int = 1, seed: int = 0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = -(-shape[0] // block[0]), -(-shape[1] // block[1])
    return torch.rand(batch, heads, rows, columns, generator=generator) < 0.4


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    M=st.integers(0, 700),
    N=st.integers(0, 9000),
    block=st.sampled_from(BLOCKS),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_there_and_back(M: int, N: int, block: tuple[int, int], batch: int, heads: int, seed: int) -> None:
    dense = random_dense((M, N), block, batch, heads, seed)
    mask = BlockMask.from_dense(dense, block, shape=(M, N))
    assert mask.bits.dtype == torch.int32
    assert torch.equal(mask.to_dense(), dense)
    assert torch.equal(mask.counts(), dense.sum(-1))
    assert mask.density() == pytest.approx(float(dense.float().mean()) if dense.numel() else 0.0)
    assert mask.num_blocks == (dense.size(2), dense.size(3))


def test_bit_order() -> None:
    dense = torch.zeros(1, 40, dtype=torch.bool)
    dense[0, [0, 5, 31, 32, 39]] = True
    mask = BlockMask.from_dense(dense, shape=(64, 40 * 64))
    assert mask.bits.shape == (1, 1, 1, 2)
    assert mask.bits.flatten().tolist() == [1 + 2**5 - 2**31, 1 + 2**7]


def test_bits_past_the_last_column_mean_nothing() -> None:
    mask = BlockMask(torch.full((1, 1, 2, 1), -1, dtype=torch.int32), shape=(100, 200))
    assert mask.density() == 1.0
    assert mask.to_dense().shape == (1, 1, 2, 4)
    assert (~mask).density() == 0.0


@pytest.mark.parametrize("block", BLOCKS)
def test_lists(block: tuple[int, int]) -> None:
    shape = (300, 5000)
    dense = random_dense(shape, block, 2, 3)
    counts = dense.sum(-1)
    indices = dense.int().argsort(dim=-1, descending=True, stable=True)[..., : int(counts.max())]
    unused = torch.arange(indices.size(-1)) >= counts.unsqueeze(-1)
    for kept, number in ((indices, counts), (indices.int(), counts.int())):
        spoiled = kept.masked_fill(unused, 10**6)  # what is not counted is not read
        assert torch.equal(BlockMask.from_lists(spoiled, number, block, shape=shape).to_dense(), dense)


def flex_mask(function: Callable[..., Tensor] | None, shape: tuple[int, int], block: int) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask, noop_mask

    return create_block_mask(function or noop_mask, 1, 2, *shape, device="cpu", BLOCK_SIZE=block)


@pytest.mark.parametrize("block", [64, 128])
def test_flex(block: int) -> None:
    def blocks(b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
        return (m // block + n // block + h) % 3 == 0

    shape = (4 * block, 5 * block)
    mask = BlockMask.from_flex(flex_mask(blocks, shape, block))
    rows, columns = torch.arange(4).unsqueeze(1), torch.arange(5)
    expected = torch.stack([(rows + columns + h) % 3 == 0 for h in range(2)])
    assert mask.shape == shape
    assert mask.block == (block, block)
    assert torch.equal(mask.to_dense()[0], expected)


def test_flex_with_blocks_in_part() -> None:
    def causal(b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
        return m >= n

    flex = flex_mask(causal, (256, 256), 64)
    with pytest.raises(ValueError, match=r"argument 'flex': expected only whole blocks .* got \d+ blocks"):
        BlockMask.from_flex(flex)
    kept = BlockMask.from_flex(flex, partial="keep")
    assert torch.equal(kept.to_dense()[0, 0], torch.ones(4, 4, dtype=torch.bool).tril())


def test_flex_of_everything() -> None:
    assert BlockMask.from_flex(flex_mask(None, (256, 192), 64)).density() == 1.0


def test_elements() -> None:
    dense = torch.tensor([[True, False, True], [False, True, False]])
    elements = BlockMask.from_dense(dense, (64, 128), shape=(70, 300)).to_elements()
    assert elements.shape == (1, 1, 70, 300)
    assert elements[0, 0, :64, :128].all()
    assert not elements[0, 0, :64, 128:256].any()
    assert elements[0, 0, :64, 256:].all()
    assert elements[0, 0, 64:, 128:256].all()


@pytest.mark.parametrize("leading", [((1, 1), (2, 3)), ((2, 1), (1, 3)), ((2, 3), (2, 3))])
def test_set_algebra(leading: tuple[tuple[int, int], tuple[int, int]]) -> None:
    shape, block = (200, 2500), (64, 64)
    a, b = (random_dense(shape, block, *sizes, seed=i) for i, sizes in enumerate(leading))
    one, two = (BlockMask.from_dense(x, block, shape=shape) for x in (a, b))
    assert torch.equal((one & two).to_dense(), a & b)
    assert torch.equal((one | two).to_dense(), a | b)
    assert torch.equal((one - two).to_dense(), a & ~b)
    assert torch.equal((~one).to_dense(), ~a)
    assert (~~one).equal(one)
    assert (one | ~one).density() == 1.0
    assert (one - one).density() == 0.0


def test_equal_needs_all_the_same() -> None:
    mask = BlockMask.full((100, 100))
    assert mask.equal(BlockMask.full((100, 100)))
    assert not mask.equal(BlockMask.full((100, 101)))
    assert not mask.equal(BlockMask.full((100, 100), (128, 128)))
    assert not mask.equal(mask & ~mask)


def test_plot() -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="the package matplotlib is not installed")
    matplotlib.use("Agg")
    mask = BlockMask.from_dense(random_dense((300, 500), (64, 64), 2, 2), shape=(300, 500))
    axes = mask.plot(batch=1, head=1)
    (image,) = axes.get_images()
    assert torch.equal(torch.tensor(image.get_array().data), mask.to_dense()[1, 1])
    assert "blocks kept" in axes.get_title()
    assert mask.plot(axes=axes) is axes


def words(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: BlockMask([1], shape=(64, 64)), TypeError, "BlockMask: argument 'bits': expected a Tensor, got list"),
    (
        lambda: BlockMask(words(1, 1, 1, 1, dtype=torch.int64), shape=(64, 64)),
        TypeError,
        "BlockMask: argument 'bits': expected dtype int32, got int64",
    ),
    (
        lambda: BlockMask(words(1, 1, 1, 1), (32, 64), shape=(64, 64)),
        ValueError,
        "BlockMask: argument 'block': expected (64, 64) or (128, 64) or (64, 128) or (128, 128), got (32, 64)",
    ),
    (
        lambda: BlockMask(words(1, 1, 1, 1), shape=(64, 64.0)),  # type: ignore[arg-type]
        TypeError,
        "BlockMask: argument 'shape': expected (M, N), two ints, got (64, 64.0)",
    ),
    (
        lambda: BlockMask(words(1, 1, 1, 1), shape=(64, -1)),
        ValueError,
        "BlockMask: argument 'shape': expected (M, N) with M, N >= 0, got (64, -1)",
    ),
    (
        lambda: BlockMask(words(1, 1, 1), shape=(64, 64)),
        ValueError,
        "BlockMask: argument 'bits': expected 4 dimensions, got 3",
    ),
    (
        lambda: BlockMask(words(1, 1, 2, 1), shape=(65, 2049)),
        ValueError,
        "BlockMask: argument 'bits': expected shape [B, H, 2, 2] (blocks of shape (65, 2049), 32 columns a word), "
        "got [1, 1, 2, 1]",
    ),
    (
        lambda: BlockMask.from_dense(words(1, 1), shape=(64, 64)),
        TypeError,
        "BlockMask.from_dense: argument 'dense': expected dtype bool, got int32",
    ),
    (
        lambda: BlockMask.from_dense(words(2, 1).bool(), shape=(64, 64)),
        ValueError,
        "BlockMask.from_dense: argument 'dense': expected shape [..., 1, 1] (blocks of shape (64, 64)), got [2, 1]",
    ),
    (
        lambda: BlockMask.from_lists(words(1, 3), words(1) + 4, shape=(64, 640)),
        ValueError,
        "BlockMask.from_lists: argument 'counts': expected values in [0, 3], got values in [4, 4]",
    ),
    (
        lambda: BlockMask.from_lists(words(1, 3) + 10, words(1) + 3, shape=(64, 640)),
        ValueError,
        "BlockMask.from_lists: argument 'indices': expected values in [0, 10), got values in [10, 10]",
    ),
    (
        lambda: BlockMask.from_lists(words(1, 3), words(2), shape=(64, 640)),
        ValueError,
        "BlockMask.from_lists: argument 'counts': expected shape [1] (indices without the last dimension), got [2]",
    ),
    (
        lambda: BlockMask.from_flex(words(1)),
        TypeError,
        "BlockMask.from_flex: argument 'flex': expected a BlockMask of torch.nn.attention.flex_attention, got Tensor",
    ),
    (
        lambda: BlockMask.full((64, 64)) & BlockMask.full((64, 65)),
        ValueError,
        "BlockMask.&: argument 'other': expected block (64, 64) and shape (64, 64), "
        "got block (64, 64) and shape (64, 65)",
    ),
    (
        lambda: BlockMask(words(2, 1, 1, 1), shape=(64, 64)) | BlockMask(words(3, 1, 1, 1), shape=(64, 64)),
        ValueError,
        "BlockMask.|: argument 'other': expected 2 or 1 batch entries, 1 or 1 heads, got 3 and 1",
    ),
    (
        lambda: BlockMask.full((64, 64)) - words(1),
        TypeError,
        "BlockMask.-: argument 'other': expected a BlockMask, got Tensor",
    ),
    (
        lambda: BlockMask.full((64, 64)).plot(head=1),
        ValueError,
        "BlockMask.plot: argument 'head': expected a value in [0, 0] (of the mask), got 1",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), BAD, ids=[text for _, _, text in BAD])
def test_bad_input(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match="^" + re.escape(f"tokcore.{text}") + "$"):
        call()
