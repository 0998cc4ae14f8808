"""Orders of the tokens of a grid, and what they do to attention."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokcore.permutation import AXES, NAMES, inverse_permutation, permutation_indices, permute_mask
from tokcore.reference.block_sparse_attention import scores

GRIDS = st.tuples(*(st.integers(1, 6),) * 3)
TEXTS = st.tuples(st.integers(0, 5), st.integers(0, 5))


def test_the_codes_are_the_six_orders() -> None:
    assert sorted(AXES) == sorted(itertools.permutations(range(3)))
    assert NAMES == ("FHW", "FWH", "HWF", "HFW", "WHF", "WFH")


@settings(max_examples=60, deadline=None)
@given(code=st.integers(0, 5), grid=GRIDS, text=TEXTS)
def test_tokens_stand_where_their_axes_say(code: int, grid: tuple[int, int, int], text: tuple[int, int]) -> None:
    indices = permutation_indices(code, grid, text).tolist()
    loops = itertools.product(*(range(grid[axis]) for axis in AXES[code]))
    inner = []
    for place in loops:
        f, h, w = (place[AXES[code].index(axis)] for axis in range(3))
        inner.append(text[0] + (f * grid[1] + h) * grid[2] + w)
    after = text[0] + len(inner)
    assert indices == [*range(text[0]), *inner, *range(after, after + text[1])]


@settings(max_examples=30, deadline=None)
@given(code=st.integers(0, 5), grid=GRIDS, text=TEXTS)
def test_permute_and_inverse_are_the_identity(code: int, grid: tuple[int, int, int], text: tuple[int, int]) -> None:
    indices = permutation_indices(code, grid, text)
    back = inverse_permutation(indices)
    x = torch.randn(indices.numel(), 3)
    assert torch.equal(x[indices][back], x)
    assert torch.equal(x[back][indices], x)


def test_attention_in_permuted_order_under_the_permuted_mask_is_the_permuted_attention() -> None:
    torch.manual_seed(0)
    grid, text, codes = (3, 4, 5), (2, 7), (0, 4, 5)
    q, k, v = torch.randn(3, 1, 3, 69, 32, dtype=torch.float64)
    mask = torch.rand(1, 3, 69, 69) < 0.5
    indices = torch.stack([permutation_indices(code, grid, text) for code in codes])

    def attend(mask: torch.Tensor, *heads: torch.Tensor) -> torch.Tensor:
        return scores(heads[0], heads[1], mask, None, torch.float64).softmax(-1) @ heads[2]

    gather = indices[None, :, :, None].expand(q.shape)
    reordered = attend(permute_mask(mask, indices), *(x.gather(2, gather) for x in (q, k, v)))
    torch.testing.assert_close(reordered, attend(mask, q, k, v).gather(2, gather), rtol=1e-12, atol=1e-12)
    back = permute_mask(permute_mask(mask, indices), inverse_permutation(indices))
    assert torch.equal(back, mask)
    assert torch.equal(permute_mask(mask, indices)[:, 1:2], permute_mask(mask[:, 1:2], indices[1]))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((6, (2, 2, 2)), ValueError, "argument 'code': expected a permutation code in [0, 5], got 6"),
        ((-1, (2, 2, 2)), ValueError, "argument 'code': expected a permutation code in [0, 5], got -1"),
        ((1.0, (2, 2, 2)), TypeError, "argument 'code': expected an int, got float"),
        ((0, (2, 2)), TypeError, "argument 'grid': expected (F, H, W), three ints, got (2, 2)"),
        ((0, (2, 0, 2)), ValueError, "argument 'grid': expected (F, H, W) with sizes >= 1, got (2, 0, 2)"),
        ((0, (2, 2, 2), (1,)), TypeError, "argument 'text': expected (before, after), two ints, got (1,)"),
        ((0, (2, 2, 2), (1, -1)), ValueError, "argument 'text': expected (before, after), two ints >= 0, got (1, -1)"),
    ],
)
def test_errors(arguments: tuple[object, ...], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        permutation_indices(*arguments)  # type: ignore[arg-type]
    assert str(caught.value) == f"tokcore.permutation_indices: {text}"


def test_errors_of_shapes() -> None:
    indices = permutation_indices(0, (1, 2, 2))
    with pytest.raises(ValueError, match=r"argument 'elements': expected shape \[..., 4, 4\] .* got \[4, 5\]"):
        permute_mask(torch.ones(4, 5), indices)
    with pytest.raises(ValueError, match=r"argument 'elements': expected 1 or 2 heads .* got 3"):
        permute_mask(torch.ones(3, 4, 4), indices.expand(2, 4))
    with pytest.raises(ValueError, match="argument 'indices': expected 1 or 2 dimensions, got 3"):
        permute_mask(torch.ones(4, 4), indices.expand(2, 2, 4))
