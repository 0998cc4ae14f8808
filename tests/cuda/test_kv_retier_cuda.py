"""``kv_retier`` on the CUDA kernels: its case table, the tests of the public function, and the bytes of the CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))

import kv_simt as cuda
import pytest
import torch
from kv_support import filled, random, same, shuffle_pages, state_of
from simt_support import POLICIES, Policy
from support import assert_error_rule
from test_kv_saliency import test_codes_that_stay_are_the_same_bytes as test_codes_that_stay_are_the_same_bytes
from test_kv_saliency import (
    test_the_important_tokens_are_the_precise_ones as test_the_important_tokens_are_the_precise_ones,
)

import tokcore
from tokcore.testing import tables
from tokcore.testing.table import Case

TABLE = tables()["kv_retier"]
NAMES = [case.name for case in TABLE.cases if "quick" in case.tags]


@pytest.fixture
def on_the_cpu() -> None:
    """The operators keep their CPU kernels."""


@pytest.fixture(autouse=True)
def _kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    if "on_the_cpu" in request.fixturenames:
        yield
        return
    with cuda.in_place_of_the_cpu("kv_retier"):
        yield


@pytest.mark.parametrize("name", NAMES)
def test_case(name: str) -> None:
    case = TABLE.case(name)
    shorter = Case(name, {**case.parameters, "L": min(case.parameters["L"], 300)}, case.tags)
    assert_error_rule(TABLE, TABLE.make_inputs(shorter, "cpu", 0))


# ---- bytes -----------------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "mixed": {"high": "int8", "low": "int2", "page_size": 32, "symmetric": True},
    "by channel": {"high": "int4", "low": "int2", "k_axis": "channel", "group": 16, "page_size": 16, "rotate": True},
    "numbers": {"high": "number", "low": "int4", "page_size": 32, "rotate": True},
    "values by channel": {"high": "int8", "low": "int4", "v_axis": "channel", "v_group": 16, "page_size": 32},
}


def cache_of(kind: str, L: int = 300, **options: Any) -> tokcore.QuantizedKVCache:
    """A cache whose pages lie in any order."""
    given = {**KINDS[kind], "high_ratio": 0.4, "residual": 20, "sinks": 3, **options}
    dtype = given.pop("dtype", torch.bfloat16)
    if given["high"] == "number":
        given["high"] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
    cache = tokcore.QuantizedKVCache(1, 2, 2, 32, L + 40, dtype=dtype, **given)
    _, _, recent, high, low, *_ = cache.layer(0).operands()
    for tensor in (*recent, *high[:6], *low[:6], high[8], low[8]):  # what no token lies in is compared as well
        tensor.zero_()
    shuffle_pages(cache)
    cache.append(0, *(random(2, L, 2, 32, seed=seed, dtype=dtype) for seed in (3, 4)))
    return cache


def scores_of(L: int = 300, seed: int = 0) -> torch.Tensor:
    """With ties, infinities, both zeros and NaN."""
    scores = (random(2, 2, L, seed=seed) * 3).round() / 2
    scores[0, 0, 5:40:7] = torch.nan
    scores[0, 1, 9:60:9] = torch.inf
    scores[1, 0, 20:50:4] = -torch.inf
    scores[1, 1, 40:200:2] = -0.0
    return scores


def retiered(cache: tokcore.QuantizedKVCache, scores: torch.Tensor, high: torch.Tensor, op: Any) -> list[torch.Tensor]:
    op(scores, high, *cache.layer(0).operands(), k_axis=cache.k_axis, v_axis=cache.v_axis, rotate=cache.rotate)
    return state_of(cache)


def extremes(cache: tokcore.QuantizedKVCache) -> list[torch.Tensor]:
    """Pages of the high tier: the most of one sequence and the least of the other, and the other way round."""
    room, state = cache.max_pages, cache.layer(0)
    pages = int(state.high.page_counts[0] + state.low.page_counts[0])  # type: ignore[union-attr]
    least, most = max(0, pages - room["low"]), min(pages, room["high"])
    assert least < most
    return [torch.tensor(counts, dtype=torch.int32) for counts in ((most, least), (least, most))]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.usefixtures("on_the_cpu")
def test_the_bytes_are_those_of_the_cpu(kind: str, dtype: torch.dtype) -> None:
    on_cpu, on_cuda = cache_of(kind, dtype=dtype), cache_of(kind, dtype=dtype)
    for seed, high in enumerate(extremes(on_cpu)):
        expected = retiered(on_cpu, scores_of(seed=seed), high, torch.ops.tokcore.kv_retier)
        assert same(retiered(on_cuda, scores_of(seed=seed), high, cuda.kv_retier), expected)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_order_of_threads_changes_no_bit(kind: str, policy: Policy) -> None:
    high = extremes(cache_of(kind))[1]
    expected = retiered(cache_of(kind), scores_of(), high, cuda.kv_retier)
    assert not same(expected, state_of(cache_of(kind)))
    policy.use()
    assert same(retiered(cache_of(kind), scores_of(), high, cuda.kv_retier), expected)


def test_guard_pages_on_the_other_side(monkeypatch: pytest.MonkeyPatch) -> None:
    high = extremes(cache_of("mixed"))[0]
    wide = torch.full((2, 3, 300), torch.nan)
    wide[:, 1:] = scores_of()
    expected = retiered(cache_of("mixed"), scores_of(), high, cuda.kv_retier)
    monkeypatch.setattr(cuda.Arrays, "placement", "start")
    assert same(retiered(cache_of("mixed"), wide[:, 1:], high, cuda.kv_retier), expected)


# ---- what the device refuses -----------------------------------------------------------------------------------------


def test_what_does_not_fit_changes_nothing() -> None:
    def tier(cache: tokcore.QuantizedKVCache, name: str) -> Any:
        return getattr(cache.layer(0), name)

    def high_counts(cache: tokcore.QuantizedKVCache) -> None:
        tier(cache, "high").page_counts[1] = 99

    def low_counts(cache: tokcore.QuantizedKVCache) -> None:
        tier(cache, "low").page_counts[0] = -1

    def outside(cache: tokcore.QuantizedKVCache) -> None:
        tier(cache, "low").page_table[1, 0] = 99

    def twice(cache: tokcore.QuantizedKVCache) -> None:
        tier(cache, "low").page_table[1, 0] = tier(cache, "low").page_table[0, 0]

    def position_twice(cache: tokcore.QuantizedKVCache) -> None:
        page = tier(cache, "high").page_table[1, 0]
        tier(cache, "high").positions[page, 1, 3] = tier(cache, "high").positions[page, 1, 4]

    def position_in_sinks(cache: tokcore.QuantizedKVCache) -> None:
        tier(cache, "high").positions[tier(cache, "high").page_table[0, 0], 0, 0] = 1

    def length(cache: tokcore.QuantizedKVCache) -> None:
        cache.layer(0).lengths[1] = -1

    def start(cache: tokcore.QuantizedKVCache) -> None:
        cache.layer(0).window_starts[0] = 2

    good = torch.tensor([3, 3], dtype=torch.int32)
    spoilers = (None, high_counts, low_counts, outside, twice, position_twice, position_in_sinks, length, start)
    for spoil in spoilers:
        cache = cache_of("mixed")
        if spoil is not None:
            spoil(cache)
        before = state_of(cache)
        assert same(retiered(cache, scores_of(), good, cuda.kv_retier), before) == (spoil is not None), spoil
    cache = cache_of("mixed")
    before = state_of(cache)
    for counts in ([-1, 3], [3, 5], [2, 3]):  # no number of pages; no room above; none below
        assert same(retiered(cache, scores_of(), torch.tensor(counts, dtype=torch.int32), cuda.kv_retier), before)
    assert same(retiered(cache, scores_of(100), good, cuda.kv_retier), before)  # fewer scores than tokens in pages
    assert same(retiered(cache, scores_of(2), good, cuda.kv_retier), before)  # none at all
    lengths, starts, recent, high, low, _, _ = cache.layer(0).operands()
    bad = torch.ones(2, 32)
    bad[1, 7] = 0.0
    cuda.kv_retier(scores_of(), good, lengths, starts, recent, high, low, bad, None)
    assert same(state_of(cache), before)


def test_the_result_says_what_lies_in_the_high_tier() -> None:
    cache, _, _ = filled(300, high="int8", low="int2", high_ratio=0.5, page_size=16, residual=32, sinks=4)
    scores = random(2, 2, 300, seed=9)
    assert tokcore.kv_retier(cache, 0, scores, ratio=0.4).tolist() == [112, 112]
    cache.layer(0).high.page_table[0, 0] = 9999  # type: ignore[union-attr]
    assert tokcore.kv_retier(cache, 0, scores, ratio=0.6).tolist() == [112, 112]  # refused
