"""``kv_compact`` on the CUDA kernels: its case table, the tests of the public function, and the bytes of the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))

import kv_simt as cuda
import pytest
import torch
from kv_support import filled, random, same, shuffle_pages, state_of
from simt_support import POLICIES, Policy
from support import assert_error_rule
from test_kv_compact import (
    test_codes_of_what_stays_in_its_tier_are_kept_bit_for_bit as test_codes_of_what_stays_in_its_tier_are_kept,
)
from test_kv_compact import tree_of, verdict_of

import tokcore
from tokcore.testing import tables
from tokcore.testing.cases.kv_compact import make_verdict
from tokcore.testing.table import Case

TABLE = tables()["kv_compact"]
NAMES = [case.name for case in TABLE.cases if "quick" in case.tags][::2]
__all__ = ["test_codes_of_what_stays_in_its_tier_are_kept"]


@pytest.fixture
def on_the_cpu() -> None:
    """The operators keep their CPU kernels."""


@pytest.fixture(autouse=True)
def _kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    if "on_the_cpu" in request.fixturenames:
        yield
        return
    with cuda.in_place_of_the_cpu("kv_compact"):
        yield


@pytest.mark.parametrize("name", NAMES)
def test_case(name: str) -> None:
    case = TABLE.case(name)
    shorter = Case(name, {**case.parameters, "L": min(case.parameters["L"], 300)}, case.tags)
    assert_error_rule(TABLE, TABLE.make_inputs(shorter, "cpu", 0))


# ---- bytes -----------------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "numbers": {"high": "number", "low": None, "page_size": 16},
    "mixed": {"high": "int8", "low": "int2", "high_ratio": 0.3, "page_size": 16, "symmetric": True},
    "by channel": {"high": "int4", "low": None, "k_axis": "channel", "group": 16, "page_size": 32, "rotate": True},
    "values by channel": {"high": "int8", "low": None, "v_axis": "channel", "v_group": 16, "page_size": 16},
    "numbers and codes": {"high": "number", "low": "int4", "high_ratio": 0.2, "page_size": 16, "rotate": True},
    "no tiers": {"high": None, "low": None},
}
LAYERS, B, N = 2, 3, 70


def cache_of(kind: str, residual: int, sinks: int = 3, dtype: torch.dtype = torch.bfloat16) -> tokcore.QuantizedKVCache:
    """Layers of several lengths with a tree of N nodes at the end of every sequence, in pages that lie in any order."""
    given = {**KINDS[kind], "residual": residual, "sinks": sinks}
    if given["high"] == "number":
        given["high"] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
    cache = tokcore.QuantizedKVCache(LAYERS, B, 2, 32, 300, dtype=dtype, **given)
    _, _, recent, high, low, *_ = cache.stacked_operands()
    for tensor in (*recent, *high[:6], *low[:6], *high[8:], *low[8:]):  # what no token lies in is compared as well
        tensor.zero_()
    shuffle_pages(cache)
    tree = tree_of(B, N)
    for layer in range(LAYERS):
        before = torch.tensor([1, 100, 57 + layer], dtype=torch.int32)
        for counts, seed in ((before, 3), (tree.counts, 5)):
            T = int(counts.max())
            cache.append(layer, *(random(B, T, 2, 32, seed=seed + i + layer, dtype=dtype) for i in (0, 1)), counts)
    return cache


def verdict(seed: int = 3) -> tokcore.Verdict:
    return make_verdict(tree_of(B, N), torch.Generator().manual_seed(seed))


def deepest() -> tokcore.Verdict:
    """The longest path of every tree."""
    tree = tree_of(B, N)
    return verdict_of(*(tree.path(b, int(depths.argmax())) for b, depths in enumerate(tree.depths())))


def compacted(cache: tokcore.QuantizedKVCache, found: tokcore.Verdict, op: Any) -> list[torch.Tensor]:
    tree = tree_of(B, N)
    op(
        found.accepted_nodes,
        found.accepted_counts,
        tree.parents,
        tree.counts,
        *cache.stacked_operands(),
        k_axis=cache.k_axis,
        v_axis=cache.v_axis,
        rotate=cache.rotate,
    )
    return [part for layer in range(LAYERS) for part in state_of(cache, layer)]


@pytest.mark.parametrize(("kind", "residual"), [*((kind, 0) for kind in KINDS if kind != "no tiers"), ("mixed", 30)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.usefixtures("on_the_cpu")
def test_the_bytes_are_those_of_the_cpu(kind: str, residual: int, dtype: torch.dtype) -> None:
    for found in (verdict(), deepest()):
        expected = compacted(cache_of(kind, residual, dtype=dtype), found, torch.ops.tokcore.kv_compact)
        assert same(compacted(cache_of(kind, residual, dtype=dtype), found, cuda.kv_compact), expected)


@pytest.mark.parametrize("kind", ["no tiers", "mixed"])
@pytest.mark.usefixtures("on_the_cpu")
def test_overlapping_moves_in_sinks_and_window(kind: str) -> None:
    for sinks in (0, 5):
        found = deepest()
        expected = compacted(cache_of(kind, 256, sinks), found, torch.ops.tokcore.kv_compact)
        assert same(compacted(cache_of(kind, 256, sinks), found, cuda.kv_compact), expected)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_order_of_threads_changes_no_bit(policy: Policy) -> None:
    for kind, residual in (("mixed", 0), ("no tiers", 256)):
        expected = compacted(cache_of(kind, residual), deepest(), cuda.kv_compact)
        policy.use()
        assert same(compacted(cache_of(kind, residual), deepest(), cuda.kv_compact), expected)
        Policy().use()


def test_guard_pages_on_the_other_side(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = compacted(cache_of("mixed", 0), deepest(), cuda.kv_compact)
    monkeypatch.setattr(cuda.Arrays, "placement", "start")
    assert same(compacted(cache_of("mixed", 0), deepest(), cuda.kv_compact), expected)


# ---- what the device refuses -----------------------------------------------------------------------------------------


def refuses(cache: tokcore.QuantizedKVCache, found: tokcore.Verdict) -> bool:
    """Whether nothing changes, in any layer and sequence."""
    before = [part for layer in range(LAYERS) for part in state_of(cache, layer)]
    return same(compacted(cache, found, cuda.kv_compact), before)


def spoiled(change: Callable[[tokcore.Verdict], None]) -> tokcore.Verdict:
    found = deepest()
    change(found)
    return found


def test_a_verdict_that_is_no_path_changes_nothing() -> None:
    def set_node(b: int, i: int, node: int) -> Callable[[tokcore.Verdict], None]:
        return lambda found: found.accepted_nodes[b].__setitem__(i, node)

    def set_count(b: int, count: int) -> Callable[[tokcore.Verdict], None]:
        return lambda found: found.accepted_counts.__setitem__(b, count)

    assert not refuses(cache_of("mixed", 0), deepest())
    last = int(deepest().accepted_counts[2]) - 1
    for change in (
        set_node(0, 0, 1),
        set_node(1, 1, 0),
        set_node(2, last, N - 1),
        set_node(2, 1, -1),
        set_node(0, 1, 2**31 - 1),
        set_count(0, -1),
        set_count(1, deepest().accepted_nodes.size(1) + 1),
        set_count(2, 2**31 - 1),
    ):
        for kind, residual in (("mixed", 0), ("no tiers", 256)):
            assert refuses(cache_of(kind, residual), spoiled(change))


def test_a_cache_that_cannot_be_compacted_stays_as_it_was() -> None:
    def table(cache: tokcore.QuantizedKVCache, name: str) -> Any:
        return getattr(cache.layer(1), name)

    def length(cache: tokcore.QuantizedKVCache) -> None:
        cache.layer(1).lengths[1] = 2

    def start(cache: tokcore.QuantizedKVCache) -> None:
        cache.layer(1).window_starts[2] += 1

    def count(cache: tokcore.QuantizedKVCache) -> None:
        table(cache, "low").page_counts[1] = 999

    def outside(cache: tokcore.QuantizedKVCache) -> None:
        table(cache, "low").page_table[1, 0] = 999

    def shared(cache: tokcore.QuantizedKVCache) -> None:
        low = table(cache, "low")
        low.page_table[1, 0] = low.page_table[1, int(low.page_counts[1]) - 1]

    def moved(cache: tokcore.QuantizedKVCache) -> None:
        low = table(cache, "low")
        low.positions[low.page_table[1, int(low.page_counts[1]) - 1], 1, 7] = 0

    for change in (length, start, count, outside, shared, moved):
        cache = cache_of("mixed", 0)
        change(cache)
        assert refuses(cache, deepest()), change.__name__
    dropped = cache_of("no tiers", 0)  # nodes that were neither kept nor put into pages
    assert refuses(dropped, deepest())


def test_trees_without_nodes_and_an_empty_batch() -> None:
    cache, _, _ = filled(50, residual=64)
    tree = tokcore.TokenTree(torch.zeros(2, 1, dtype=torch.int32), torch.zeros(2, 1, dtype=torch.int64), [0, 0])
    before = state_of(cache)
    tokcore.kv_compact(cache, verdict_of([], []), tree)
    assert same(state_of(cache), before)
