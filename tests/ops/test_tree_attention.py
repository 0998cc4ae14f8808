"""``decode_attention`` over token trees, and over caches that share pages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kv_support import filled, random
from support import bits, threads
from torch import Tensor

import tokcore
from tokcore.reference.decode_attention import decode_attention as reference
from tokcore.testing.cases._trees import random_parents

KINDS: dict[str, dict[str, Any]] = {
    "bf16": {"high": "bf16", "low": None},
    "int8": {"high": "int8", "low": None},
    "int4": {"high": "int4", "low": None},
    "int2 by channel": {"high": "int2", "low": None, "k_axis": "channel"},
    "mixed": {"high": "int8", "low": "int2", "high_ratio": 0.3},
    "values by channel": {"high": "int4", "low": "int8", "residual": 0, "v_axis": "channel", "v_group": 32},
    "in pages": {"high": "int8", "low": "int4", "high_ratio": 0.4, "residual": 0, "page_size": 16},
    "dropped": {"high": None, "low": None, "residual": 300},
}


def attend(q: Tensor, cache: tokcore.QuantizedKVCache, **options: Any) -> tuple[Tensor, Tensor]:
    found = tokcore.decode_attention(q, cache, 0, return_lse=True, **options)
    assert isinstance(found, tuple)
    return found


def equal(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(bits(a), bits(b)) for a, b in zip(left, right, strict=True))


def tree_of(B: int, N: int, shape: str = "random", seed: int = 0, ragged: bool = True) -> tokcore.TokenTree:
    parents, counts = random_parents(B, N, shape, torch.Generator().manual_seed(seed), ragged)
    return tokcore.TokenTree(parents, torch.zeros(B, N, dtype=torch.int64), counts)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("N", [2, 17, 65, 256])
@pytest.mark.parametrize("window", [None, 90])
def test_every_kind_of_cache(kind: str, N: int, window: int | None) -> None:
    cache, _, _ = filled(600, **KINDS[kind])
    tree = tree_of(2, N, "wide" if N == 17 else "random", seed=N)
    q = random(2, N, 4, 64, seed=4, dtype=torch.bfloat16)
    q[~tree.valid()] = float("nan")  # never read
    out, lse = attend(q, cache, tree=tree, window=window)
    expected, expected_lse = reference(torch.nan_to_num(q), cache, 0, tree=tree, window=window)
    inside = tree.valid()
    torch.testing.assert_close(out[inside].double(), expected[inside], rtol=0, atol=8e-3)
    by_node = lse.transpose(1, 2)
    torch.testing.assert_close(by_node[inside].double(), expected_lse.transpose(1, 2)[inside], rtol=0, atol=8e-3)
    assert torch.equal(out[~inside], torch.zeros_like(out[~inside]))
    assert bool((by_node[~inside] == -torch.inf).all())


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("window", [None, 3, 200])
def test_a_chain_is_causal_decoding_bit_for_bit(kind: str, window: int | None) -> None:
    cache, _, _ = filled(777, **KINDS[kind])
    for N in (1, 8, 70):
        q = random(2, N, 4, 64, seed=4, dtype=torch.bfloat16)
        chain = tokcore.TokenTree.chain(torch.zeros(2, N, dtype=torch.int64))
        assert equal(attend(q, cache, tree=chain, window=window), attend(q, cache, window=window))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    cache, _, _ = filled(600, dtype=dtype, high="int8", low="int2")
    tree = tree_of(2, 40, ragged=False)
    q = random(2, 40, 6, 64, seed=4, dtype=dtype)
    for mine, expected in zip(attend(q, cache, tree=tree), reference(q, cache, 0, tree=tree), strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=0, atol=4e-6 if dtype == torch.float32 else 2e-3)


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_the_order_of_nodes_is_the_order_of_rows(kind: str) -> None:
    # A tree whose nodes are numbered otherwise gives the same, row by row: depth counts, not number.
    N = 24
    parents, _ = random_parents(1, N, "random", torch.Generator().manual_seed(1), ragged=False)
    tree = tokcore.TokenTree(parents, torch.zeros(1, N, dtype=torch.int64))
    order = torch.argsort(tree.depths()[0].to(torch.int64) * N + torch.randperm(N))  # parents stay first
    place = torch.empty(N, dtype=torch.int64)
    place[order] = torch.arange(N)
    above = parents[0].long()[order]
    moved = torch.where(above >= 0, place[above.clamp(min=0)], -1).to(torch.int32).unsqueeze(0)
    other = tokcore.TokenTree(moved, torch.zeros(1, N, dtype=torch.int64))
    k, v = random(1, 300 + N, 2, 64, dtype=torch.bfloat16), random(1, 300 + N, 2, 64, seed=1, dtype=torch.bfloat16)
    q = random(1, N, 4, 64, seed=4, dtype=torch.bfloat16)
    found = []
    for which, chosen in ((torch.arange(N), tree), (order, other)):
        cache = tokcore.QuantizedKVCache(1, 1, 2, 64, 400, **KINDS[kind])
        cache.append(0, k[:, :300], v[:, :300])
        cache.append(0, k[:, 300:][:, which], v[:, 300:][:, which])
        found.append(attend(q[:, which], cache, tree=chosen, window=20)[0])
    torch.testing.assert_close(found[0][:, order].float(), found[1].float(), rtol=0, atol=8e-3)


def test_a_node_never_sees_what_is_no_ancestor() -> None:
    N = 40
    tree = tree_of(1, N, ragged=False)
    k, v = random(1, 500, 2, 64, dtype=torch.bfloat16), random(1, 500, 2, 64, seed=1, dtype=torch.bfloat16)
    q = random(1, N, 4, 64, seed=4, dtype=torch.bfloat16)
    mask = tree.mask()[0]
    for kind in ("bf16", "mixed"):
        cache = tokcore.QuantizedKVCache(1, 1, 2, 64, 600, **KINDS[kind])
        cache.append(0, k, v)
        clean = attend(q, cache, tree=tree)[0]
        for bad in (5, 17, 39):
            for fill in (float("nan"), float("inf")):
                poisoned = k.clone()
                poisoned[:, 500 - N + bad] = fill
                cache = tokcore.QuantizedKVCache(1, 1, 2, 64, 600, **KINDS[kind])
                cache.append(0, poisoned, v)
                found = attend(q, cache, tree=tree)[0][0]
                assert torch.equal(bits(found[~mask[:, bad]]), bits(clean[0][~mask[:, bad]]))
                assert bool(found[mask[:, bad]].isnan().flatten(1).any(1).all())


@pytest.mark.parametrize("kind", ["bf16", "int4", "mixed"])
def test_threads_and_company_change_no_bit(kind: str) -> None:
    cache, k, v = filled(5000, B=3, **KINDS[kind])
    tree = tree_of(3, 20)
    q = random(3, 20, 4, 64, seed=4, dtype=torch.bfloat16)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(attend(q, cache, tree=tree))
    assert equal(found[0], found[1])
    assert equal(found[0], found[2])
    alone = tokcore.QuantizedKVCache(1, 1, 2, 64, 5064, **KINDS[kind])
    alone.append(0, k[1:2], v[1:2])
    part = tokcore.TokenTree(tree.parents[1:2], tree.tokens[1:2], tree.counts[1:2])
    assert equal((found[0][0][1:2], found[0][1][1:2]), attend(q[1:2], alone, tree=part))


def test_requests_without_a_tree() -> None:
    cache, _, _ = filled(100)
    parents = torch.tensor([[-1, 0, 0], [-1, 0, 0]], dtype=torch.int32)
    tree = tokcore.TokenTree(parents, torch.zeros(2, 3, dtype=torch.int64), [0, 3])
    q = random(2, 3, 4, 64, seed=4, dtype=torch.bfloat16)
    out, lse = attend(q, cache, tree=tree)
    assert not out[0].any()
    assert bool((lse[0] == -torch.inf).all())
    torch.testing.assert_close(out[1].double(), reference(q, cache, 0, tree=tree)[0][1], rtol=0, atol=8e-3)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"tree": 3}, TypeError, "argument 'tree': expected a TokenTree or None, got int"),
        (
            {"tree": tree_of(2, 4)},
            ValueError,
            "argument 'tree': expected [2, 3] trees and nodes ([B, M] of q), got",
        ),
        (
            {"tree": tree_of(1, 3)},
            ValueError,
            "argument 'tree': expected [2, 3] trees and nodes ([B, M] of q), got",
        ),
    ],
)
def test_bad_trees(change: dict[str, Any], error: type[Exception], words: str) -> None:
    cache, _, _ = filled(10)
    with pytest.raises(error) as raised:
        tokcore.decode_attention(random(2, 3, 4, 64, dtype=torch.bfloat16), cache, 0, **change)
    assert words in str(raised.value)


def test_more_nodes_than_tokens() -> None:
    cache, _, _ = filled(2)
    words = r"argument 'tree_counts': expected a value in \[0, 2\] \(M, and tokens in the cache\), got 3 of sequence 0"
    with pytest.raises(ValueError, match=words):
        attend(random(2, 3, 4, 64, dtype=torch.bfloat16), cache, tree=tree_of(2, 3, ragged=False))


# ---- sequences that share pages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
def test_shared_prefixes_give_what_copies_give(kind: str) -> None:
    # Sequences 1 and 3 go on from sequence 0 after 4500 tokens, sequence 2 from sequence 1 after 60 more.
    B, L, more = 4, 4500, 60
    k, v = random(B, L + 2 * more, 2, 64, dtype=torch.bfloat16), random(B, L + 2 * more, 2, 64, seed=1)
    v = v.bfloat16()
    family = {0: 0, 1: 0, 2: 1, 3: 0}
    copies = tokcore.QuantizedKVCache(1, B, 2, 64, 5000, **KINDS[kind])
    shared = tokcore.QuantizedKVCache(1, B, 2, 64, 5000, **KINDS[kind])

    def step(first: int, rows: list[int], count: int) -> None:
        for cache in (copies, shared):
            lengths = [count if b in rows else 0 for b in range(B)]
            cache.append(0, k[:, first : first + count], v[:, first : first + count], lengths)

    for source in (k, v):
        source[[1, 2, 3], :L] = source[0, :L].clone()
        source[2, : L + more] = source[1, : L + more].clone()
    shared.append(0, k[:, :L], v[:, :L], [L, 0, 0, 0])
    copies.append(0, k[:, :L], v[:, :L])
    shared.fork(0, [1, 3])
    step(L, [0, 1, 3], more)
    copies.append(0, k[:, L : L + more], v[:, L : L + more], [0, 0, more, 0])
    shared.fork(1, [2])
    step(L + more, [0, 1, 2, 3], more)
    tree = tree_of(B, 9)
    q = random(B, 9, 8, 64, seed=4, dtype=torch.bfloat16)
    assert family[2] == 1
    for options in ({}, {"tree": tree}, {"softcap": 3.0}, {"window": 100}):
        found = [attend(q, shared, **options)]
        with threads(3):
            found.append(attend(q, shared, **options))
        expected = attend(q, copies, **options)
        assert equal(found[0], expected)
        assert equal(found[1], expected)
    for a, b in zip(reference(q, shared, 0, tree=tree), reference(q, copies, 0, tree=tree), strict=True):
        assert torch.equal(a, b)


def test_shared_pages_are_one_memory() -> None:
    # A page that several sequences share counts for all of them; NaN in a page of one is seen by that one alone.
    wide = tokcore.QuantizedKVCache(1, 3, 2, 64, 3200, high="bf16", low=None)
    k, v = random(3, 2600, 2, 64, dtype=torch.bfloat16), random(3, 2600, 2, 64, seed=1, dtype=torch.bfloat16)
    wide.append(0, k, v, [2600, 0, 0])
    wide.fork(0, [1, 2])
    extra = random(3, 400, 2, 64, seed=8, dtype=torch.bfloat16)
    extra[1, :200] = float("nan")
    wide.append(0, extra, extra)
    q = random(3, 1, 4, 64, seed=4, dtype=torch.bfloat16)
    out = attend(q, wide)[0]
    assert bool(out[1].isnan().all())
    assert not out[[0, 2]].isnan().any()
    tier = wide.layer(0).high
    assert tier is not None
    shared = tier.page_table[1] == tier.page_table[0]
    assert int(shared.sum()) == (2600 - 4 - 128) // 64
    tier.k_pages[int(tier.page_table[0, 3])] = float("nan")
    assert bool(attend(q, wide)[0].isnan().all())


def test_forks_that_do_not_fit() -> None:
    cache, _, _ = filled(400, B=4)
    with pytest.raises(ValueError, match=r"fork: argument 'rows': expected empty sequences, got \[1\]"):
        cache.fork(0, [1])
    cache.free([1, 2])
    for rows in ([4], [-1], [0], [1, 1]):
        with pytest.raises(ValueError, match=r"fork: argument 'rows': expected different rows in \[0, 4\) without 0"):
            cache.fork(0, rows)
    cache.fork(0, [1])
    cache.fork(1, [2])
    for freed in ([0], [1], [0, 1]):
        with pytest.raises(ValueError, match=r"free: argument 'rows': expected the rows that share pages of \d too"):
            cache.free(freed)
    with pytest.raises(ValueError, match=r"argument '(high|low).page_table': expected a page of its own"):
        tokcore.kv_retier(cache, 0, torch.rand(4, 2, 400), ratio=0.5)
    cache.free([2, 1])
    before = [tier.page_table.clone() for tier in (cache.layer(0).high, cache.layer(0).low) if tier is not None]
    assert all(len(table.unique()) == table.numel() for table in before)
    tokcore.kv_retier(cache, 0, torch.rand(4, 2, 400), ratio=0.5)
    cache.append(0, random(4, 300, 2, 64).bfloat16(), random(4, 300, 2, 64).bfloat16(), [0, 300, 300, 0])
    cache.reset()
