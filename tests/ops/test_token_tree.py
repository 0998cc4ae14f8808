"""``TokenTree``: links, masks, duplicates, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokcore
from tokcore.testing.cases._trees import random_parents

#        0
#      / | \
#     1  2  5
#    / \     \
#   3   4     6
PARENTS = torch.tensor([[-1, 0, 0, 1, 1, 0, 5]], dtype=torch.int32)
TOKENS = torch.tensor([[10, 11, 12, 13, 13, 11, 10]])


def tree() -> tokcore.TokenTree:
    return tokcore.TokenTree(PARENTS, TOKENS)


def test_links() -> None:
    found = tree()
    assert found.depths().tolist() == [[0, 1, 1, 2, 2, 1, 2]]
    assert found.ancestor_words().flatten().tolist() == [1, 3, 5, 11, 19, 33, 97]
    first, following = found.links()
    assert first.tolist() == [[1, 3, -1, -1, -1, 6, -1]]
    assert following.tolist() == [[-1, 2, 5, 4, -1, -1, -1]]
    assert found.children(0, 0) == [1, 2, 5]
    assert found.path(0, 6) == [0, 5, 6]
    assert found.positions(torch.tensor([100])).tolist() == [[100, 101, 101, 102, 102, 101, 102]]


def test_duplicates_are_equal_tokens_of_siblings() -> None:
    assert tree().duplicates().tolist() == [[False, False, False, False, True, True, False]]
    short = tokcore.TokenTree(PARENTS, TOKENS, [5])
    assert short.duplicates().tolist() == [[False, False, False, False, True, False, False]]


def test_padding_is_never_looked_at() -> None:
    parents = torch.full((2, 70), 12345, dtype=torch.int32)
    parents[:, 0] = -1
    found = tokcore.TokenTree(parents, torch.zeros(2, 70, dtype=torch.int64), [1, 0])
    assert found.ancestor_words().tolist() == [[[1, 0]] + [[0, 0]] * 69, [[0, 0]] * 70]
    assert not found.depths().any()
    assert not found.mask()[1].any()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 256), st.sampled_from(["random", "chain", "star", "wide"]), st.integers(0, 99))
def test_masks_and_back(N: int, shape: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parents, counts = random_parents(2, N, shape, generator)
    made = tokcore.TokenTree(parents, torch.randint(9, (2, N), generator=generator), counts)
    again = tokcore.TokenTree.from_mask(made.mask(), made.tokens, counts)
    inside = made.valid()
    assert torch.equal(again.parents[inside], parents[inside])
    assert torch.equal(again.ancestor_words(), made.ancestor_words())
    assert torch.equal(made.mask().sum(-1), torch.where(inside, made.depths() + 1, 0))


def test_a_chain() -> None:
    made = tokcore.TokenTree.chain(torch.arange(12).reshape(2, 6), [6, 4])
    assert torch.equal(made.mask()[0], torch.ones(6, 6, dtype=torch.bool).tril())
    assert made.depths().tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 0, 0]]


def changed(node: int, parent: int, request: int = 1) -> dict[str, Any]:
    parents = PARENTS.repeat(2, 1)
    parents[request, node] = parent
    return {"parents": parents, "tokens": TOKENS.repeat(2, 1)}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (changed(0, 0), ValueError, "argument 'parents': expected -1 for the root, got 0 at node 0 of request 1"),
        (
            changed(4, -1),
            ValueError,
            "argument 'parents': expected a value in [0, 4) (a node before its own), got -1 at node 4 of request 1",
        ),
        (changed(3, 3), ValueError, "expected a value in [0, 3) (a node before its own), got 3 at node 3 of request 1"),
        (changed(3, 6), ValueError, "got 6 at node 3 of request 1"),
        (changed(6, 2**31 - 1, 0), ValueError, "got 2147483647 at node 6 of request 0"),
        (changed(6, -(2**31)), ValueError, "got -2147483648 at node 6 of request 1"),
        (
            {"counts": [8]},
            ValueError,
            "argument 'counts': expected a value in [0, 7] (N of parents), got 8 of request 0",
        ),
        ({"counts": [-1]}, ValueError, "argument 'counts': expected a value in [0, 7] (N of parents), got -1"),
        ({"counts": [1, 2]}, ValueError, "argument 'counts': expected shape [1] (B of parents), got [2]"),
        ({"counts": torch.tensor([1])}, TypeError, "argument 'counts': expected dtype int32, got int64"),
        ({"parents": PARENTS.long()}, TypeError, "argument 'parents': expected dtype int32, got int64"),
        ({"tokens": TOKENS.float()}, TypeError, "argument 'tokens': expected dtype int64, got float32"),
        (
            {"tokens": TOKENS[:, :3]},
            ValueError,
            "argument 'tokens': expected shape [1, 7] (shape of parents), got [1, 3]",
        ),
        ({"parents": [0]}, TypeError, "argument 'parents': expected a Tensor, got list"),
        ({"parents": PARENTS[0]}, ValueError, "argument 'parents': expected 2 dimensions, got 1"),
    ],
)
def test_bad_trees(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)) as raised:
        tokcore.TokenTree(**{"parents": PARENTS, "tokens": TOKENS, **change})
    assert str(raised.value).startswith("tokcore.TokenTree: argument '")


@pytest.mark.parametrize("N", [0, 257])
def test_sizes(N: int) -> None:
    with pytest.raises(ValueError, match=rf"argument 'parents': expected N in \[1, 256\], got {N}"):
        tokcore.TokenTree(torch.zeros(1, N, dtype=torch.int32), torch.zeros(1, N, dtype=torch.int64))


def test_a_mask_that_is_no_tree() -> None:
    mask = tree().mask()
    mask[0, 6, 2] = True
    words = "argument 'mask': expected row 6 of request 0: the node, its parent 5 and all that the parent's row has"
    with pytest.raises(ValueError, match=re.escape(words)):
        tokcore.TokenTree.from_mask(mask, TOKENS)


def test_a_picture_places_every_node() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    for dark in (False, True):
        axes = tree().plot(labels=list("abcdefg"), accepted=[0, 1, 3], dark=dark)
        assert [text.get_text() for text in axes.texts] == list("abcdefg")
        assert len({text.get_position() for text in axes.texts}) == 7
        assert len(axes.lines) == 6
        pyplot.close(axes.figure)
