"""``kv_compact`` beyond its case table: bytes, layers, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from kv_support import by_position, filled, random, same, state_of
from support import bits, threads
from test_decode_attention import poison
from torch import Tensor

import tokcore
from tokcore.testing.cases._trees import random_parents
from tokcore.testing.cases.kv_compact import make_verdict

KINDS: dict[str, dict[str, Any]] = {
    "bf16": {"high": "bf16", "low": None},
    "int4": {"high": "int4", "low": None},
    "mixed": {"high": "int8", "low": "int2", "high_ratio": 0.3},
}


def tree_of(B: int, N: int, seed: int = 0) -> tokcore.TokenTree:
    parents, counts = random_parents(B, N, "wide", torch.Generator().manual_seed(seed))
    return tokcore.TokenTree(parents, torch.zeros(B, N, dtype=torch.int64), counts)


def verdict_of(*paths: list[int]) -> tokcore.Verdict:
    most = max(map(len, paths))
    nodes = torch.tensor([path + [-1] * (most - len(path)) for path in paths], dtype=torch.int32)
    counts = torch.tensor([len(path) for path in paths], dtype=torch.int32)
    return tokcore.Verdict(nodes, counts, torch.zeros(len(paths), dtype=torch.int64))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("L", [0, 2, 190, 500])
def test_it_is_as_if_only_the_path_had_been_appended(kind: str, L: int) -> None:
    # The residual holds the whole tree and what came before it, so that not even the window differs.
    B, N = 3, 48
    tree = tree_of(B, N)
    verdict = make_verdict(tree, torch.Generator().manual_seed(3))
    options = {"capacity": L + 100, "residual": 600, "page_size": 16, **KINDS[kind]}
    cache, _, _ = filled(L, B=B, **options)
    expected, _, _ = filled(L, B=B, **options)
    k, v = random(B, N, 2, 64, seed=7, dtype=torch.bfloat16), random(B, N, 2, 64, seed=8, dtype=torch.bfloat16)
    cache.append(0, k, v, tree.counts)
    index = verdict.accepted_nodes.clamp(min=0).long()[..., None, None].expand(-1, -1, 2, 64)
    expected.append(0, k.gather(1, index), v.gather(1, index), verdict.accepted_counts)
    tokcore.kv_compact(cache, verdict, tree)
    assert torch.equal(cache.lengths, expected.lengths)
    for b in range(B):
        for mine, theirs in zip(by_position(cache, b), by_position(expected, b), strict=True):
            assert torch.equal(mine, theirs)
    q = random(B, 1, 4, 64, seed=4, dtype=torch.bfloat16)
    out, want = (tokcore.decode_attention(q, each, 0) for each in (cache, expected))
    assert isinstance(out, Tensor)
    assert isinstance(want, Tensor)
    assert torch.equal(bits(out), bits(want))


@pytest.mark.parametrize("page_size", [16, 32, 64, 128])
@pytest.mark.parametrize("kind", list(KINDS))
def test_all_layers_of_different_lengths_and_threads(kind: str, page_size: int) -> None:
    B, N, layers = 2, 90, 3
    tree = tree_of(B, N)
    verdict = make_verdict(tree, torch.Generator().manual_seed(3))
    found = []
    for count in (1, 3):
        cache = tokcore.QuantizedKVCache(layers, B, 2, 64, 900, residual=30, page_size=page_size, **KINDS[kind])
        for layer in range(layers):
            poisoned = tokcore.QuantizedKVCache(1, B, 2, 64, 900, residual=30, page_size=page_size, **KINDS[kind])
            poison(poisoned)
            for target, source in zip(layer_tensors(cache, layer), layer_tensors(poisoned, 0), strict=True):
                target.copy_(source)
            L = 200 + 37 * layer
            cache.append(layer, random(B, L, 2, 64, seed=layer).bfloat16(), random(B, L, 2, 64).bfloat16())
            nodes = random(2, B, N, 2, 64, seed=layer + 9, dtype=torch.bfloat16)
            cache.append(layer, nodes[0], nodes[1], tree.counts)
        before = [[by_position(cache, b, layer) for b in range(B)] for layer in range(layers)]
        with threads(count):
            tokcore.kv_compact(cache, verdict, tree)
        for layer in range(layers):
            L = 200 + 37 * layer
            kept = cache.layer(layer).lengths
            assert torch.equal(kept, L + verdict.accepted_counts)
            for b in range(B):
                after = by_position(cache, b, layer)
                path = verdict.accepted_nodes[b, : int(verdict.accepted_counts[b])].long()
                index = torch.cat([torch.arange(L), L + path])
                loose = {"bf16": 0.0, "int4": 0.5, "mixed": 2.0}[kind]  # what enters a page is quantized
                for mine, theirs in zip(after[:2], before[layer][b][:2], strict=True):
                    assert torch.equal(mine[:, :L].isfinite(), torch.ones_like(mine[:, :L], dtype=torch.bool))
                    torch.testing.assert_close(mine, theirs[:, index], rtol=0, atol=loose)
                    whole = L // page_size * page_size - page_size
                    assert torch.equal(mine[:, :whole], theirs[:, :whole])
        found.append([state_of(cache, layer) for layer in range(layers)])
    assert all(same(a, b) for a, b in zip(*found, strict=True))


def layer_tensors(cache: tokcore.QuantizedKVCache, layer: int) -> list[Tensor]:
    state = cache.layer(layer)
    parts = [state.window_k, state.window_v, state.sink_k, state.sink_v]
    for tier in (state.high, state.low):
        if tier is not None:
            parts += [tier.k_pages, tier.v_pages, tier.k_scale, tier.k_zero, tier.v_scale, tier.v_zero]
            tier.positions.zero_()  # of what is in no page yet
    return parts


N = 64


def branched() -> Tensor:
    """Parents of a tree with the branches 0 … 7 and 0, 8 … 63."""
    parents = torch.tensor([[-1, *range(N - 1)]], dtype=torch.int32)
    parents[0, 8] = 0
    return parents


def test_codes_of_what_stays_in_its_tier_are_kept_bit_for_bit() -> None:
    tree = tokcore.TokenTree(branched(), torch.zeros(1, N, dtype=torch.int64))
    path = [0, *range(8, N)]
    cache, _, _ = filled(100 + N, B=1, high="int4", low=None, residual=0, page_size=16, sinks=4)
    k, _, _ = by_position(cache, 0)
    tokcore.kv_compact(cache, verdict_of(path), tree)
    after, _, positions = by_position(cache, 0)
    assert positions.size(1) == 100 + len(path)
    in_pages = int(cache.layer(0).window_starts[0])
    assert in_pages == 4 + (100 + len(path) - 4) // 16 * 16
    source = torch.tensor([*range(100), *(100 + node for node in path)])
    was_coded = source[4:in_pages] < 4 + (100 + N - 4) // 16 * 16
    assert was_coded.sum() > 140
    assert torch.equal(after[:, 4:in_pages][:, was_coded], k[:, source[4:in_pages][was_coded]])


def test_decoding_goes_on() -> None:
    cache, _, _ = filled(300, residual=64, page_size=16, capacity=600, **KINDS["mixed"])
    from tokcore.reference.decode_attention import decode_attention as reference

    for step in range(4):
        tree = tree_of(2, 30, seed=step)
        k = random(2, 30, 2, 64, seed=step, dtype=torch.bfloat16)
        cache.append(0, k, k, tree.counts)
        q = random(2, 30, 4, 64, seed=4, dtype=torch.bfloat16)
        out = tokcore.decode_attention(q, cache, 0, tree=tree)
        assert isinstance(out, Tensor)
        torch.testing.assert_close(out.double(), reference(q, cache, 0, tree=tree)[0], rtol=0, atol=8e-3)
        tokcore.kv_compact(cache, make_verdict(tree, torch.Generator().manual_seed(step)), tree)


PARENTS = torch.tensor([[-1, 0, 0, 1, 2], [-1, 0, 1, 2, 3]], dtype=torch.int32)


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (([1], [0]), "argument 'accepted_nodes': expected the root, node 0, got 1 at 0 of sequence 0"),
        (([0, 1], [0, 2]), "argument 'accepted_nodes': expected a child of node 0, got 2 at 1 of sequence 1"),
        (([0, 1, 4], [0]), "argument 'accepted_nodes': expected a child of node 1, got 4 at 2 of sequence 0"),
        (([0, -1, 1], [0]), "argument 'accepted_nodes': expected a child of node 0, got -1 at 1 of sequence 0"),
        (([0, 99], [0]), "argument 'accepted_nodes': expected a child of node 0, got 99 at 1 of sequence 0"),
        (
            ([0], [0, 1, 2, 3]),
            "argument 'accepted_counts': expected a value in [0, 3] (nodes of the tree, K of accepted_nodes), got 4",
        ),
    ],
)
def test_what_is_no_path_leaves_the_cache_as_it_was(paths: tuple[list[int], ...], words: str) -> None:
    cache, _, _ = filled(50)
    tree = tokcore.TokenTree(PARENTS, torch.zeros(2, 5, dtype=torch.int64), [5, 3])
    before = state_of(cache)
    with pytest.raises(ValueError, match=re.escape(f"tokcore.kv_compact: {words}")):
        tokcore.kv_compact(cache, verdict_of(*paths), tree)
    assert same(before, state_of(cache))


def test_what_cannot_be_compacted() -> None:
    tree = tokcore.TokenTree(PARENTS, torch.zeros(2, 5, dtype=torch.int64))
    verdict = verdict_of([0, 1], [0, 1])
    empty, _, _ = filled(3)
    with pytest.raises(ValueError, match=r"argument 'tree_counts': expected at most 3 \(tokens in layer 0\), got 5 of"):
        tokcore.kv_compact(empty, verdict, tree)
    dropped, _, _ = filled(53, high=None, low=None, residual=0, page_size=16)
    with pytest.raises(ValueError, match=r"argument 'window_starts': expected at most 48: without tiers"):
        tokcore.kv_compact(dropped, verdict, tree)
    sorted_since, _, _ = filled(84, residual=0, page_size=16, sinks=4, high="int8", low="int4")
    tokcore.kv_retier(sorted_since, 0, random(2, 2, 84), ratio=0.4)
    before = state_of(sorted_since)
    with pytest.raises(ValueError, match=r"argument 'low.positions': expected the tree's nodes as kv_append left them"):
        tokcore.kv_compact(sorted_since, verdict, tree)
    assert same(before, state_of(sorted_since))
    shared, _, _ = filled(100 + N, residual=0, page_size=16, sinks=4, high="int8", low=None)
    shared.free([1])
    shared.fork(0, [1])
    forked = tokcore.TokenTree(branched().repeat(2, 1), torch.zeros(2, N, dtype=torch.int64), [N, 0])
    with pytest.raises(ValueError, match=r"argument 'high.page_table': expected a page of its own for every page that"):
        tokcore.kv_compact(shared, verdict_of([0, *range(8, N)], []), forked)
    with pytest.raises(TypeError, match="argument 'verdict': expected a Verdict, got int"):
        tokcore.kv_compact(empty, 3, tree)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="argument 'tree': expected 2 requests"):
        tokcore.kv_compact(empty, verdict, tree_of(3, 4))
