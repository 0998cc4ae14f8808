"""Quantization and append on the CUDA kernels: their case tables and the tests of the public functions, and bits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))

import kv_simt as cuda
import pytest
import torch
from kv_support import random, same, shuffle_pages, state_of
from simt_support import POLICIES, Policy
from support import assert_error_rule, bits
from test_kv_cache import test_ragged_lengths as test_ragged_lengths
from test_kv_quantize import test_a_channel_scale_per_head as test_a_channel_scale_per_head
from test_kv_quantize import (
    test_a_range_that_overflows_is_nan_and_not_wrong as test_a_range_that_overflows_is_nan_and_not_wrong,
)
from test_kv_quantize import test_constant_groups_come_back as test_constant_groups_come_back
from test_kv_quantize import (
    test_what_is_not_finite_poisons_its_group_alone as test_what_is_not_finite_poisons_its_group_alone,
)

import tokcore
from tokcore.reference import kv_quantize as meaning
from tokcore.testing import tables
from tokcore.testing.table import Case

TABLES = {op: table for op, table in tables().items() if op in ("kv_quantize", "kv_append")}
QUICK = [(op, case.name) for op, table in TABLES.items() for case in table.cases if "quick" in case.tags]


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with cuda.in_place_of_the_cpu("kv_quantize", "kv_dequantize", "kv_append"):
        yield


def shortened(case: Case) -> Case:
    """At most 200 tokens: what comes after is more of the same."""
    parameters = dict(case.parameters)
    if "L" in parameters:
        parameters["L"] = min(parameters["L"], 200)
    return Case(case.name, parameters, case.tags)


@pytest.mark.parametrize(("op", "name"), QUICK, ids=lambda value: str(value))
def test_case(op: str, name: str) -> None:
    table = TABLES[op]
    assert_error_rule(table, table.make_inputs(shortened(table.case(name)), "cpu", 0))


# ---- the order of threads, pages and calls ---------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "mixed": {"high": "int8", "low": "int2", "high_ratio": 0.4, "page_size": 32},
    "by channel": {"high": "int4", "low": None, "k_axis": "channel", "group": 16, "page_size": 16, "rotate": True},
    "values by channel": {"high": "int8", "low": "int2", "v_axis": "channel", "v_group": 16, "page_size": 32},
    "numbers": {"high": "bf16", "low": "int4", "page_size": 64, "symmetric": True},
}


def appended(pieces: tuple[int, ...], kind: str, B: int = 2, shuffle: bool = False) -> tokcore.QuantizedKVCache:
    """A cache to which the same tokens are appended in pieces."""
    T = sum(pieces)
    cache = tokcore.QuantizedKVCache(1, B, 2, 32, T + 5, residual=20, sinks=3, **KINDS[kind])
    for tensor in cache.layer(0).operands()[2]:
        tensor.zero_()
    for tier in (cache.layer(0).high, cache.layer(0).low):
        for tensor in [] if tier is None else tier.tensors()[:6]:
            tensor.zero_()
    if shuffle:
        shuffle_pages(cache)
    k, v = (random(B, T, 2, 32, seed=seed, dtype=torch.bfloat16) for seed in (3, 4))
    first = 0
    for piece in pieces:
        cache.append(0, k[:, first : first + piece], v[:, first : first + piece])
        first += piece
    return cache


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_order_of_threads_changes_no_bit(kind: str, policy: Policy) -> None:
    expected = state_of(appended((100, 7), kind))
    policy.use()
    assert same(state_of(appended((100, 7), kind)), expected)


@pytest.mark.parametrize("kind", list(KINDS))
def test_pieces_change_no_bit(kind: str) -> None:
    whole = state_of(appended((131,), kind))
    for pieces in ((1,) * 12 + (119,), (40, 1, 64, 26), (130, 1)):
        found = state_of(appended(pieces, kind))
        # A window keeps what an append of many tokens never brought into it: compare what belongs to tokens.
        assert same(found[:2] + found[6:], whole[:2] + whole[6:])


def test_guard_pages_on_the_other_side(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = state_of(appended((90, 1, 20), "mixed", shuffle=True))
    monkeypatch.setattr(cuda.Arrays, "placement", "start")
    assert same(state_of(appended((90, 1, 20), "mixed", shuffle=True)), expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_quantization_of_strided_rows(workers: int) -> None:
    Policy("random", seed=3, workers=workers).use()
    x = random(3, 64, 64)
    wide = torch.full((3, 64, 70), float("nan"))
    wide[..., 3:67] = x
    for axis in ("token", "channel"):
        expected = tokcore.kv_quantize(x, 4, axis, 32)
        for other in (wide[..., 3:67], x.transpose(0, 1).contiguous().transpose(0, 1)):
            got = tokcore.kv_quantize(other, 4, axis, 32)
            assert torch.equal(got.packed, expected.packed)
            assert torch.equal(bits(got.scale), bits(expected.scale))


@pytest.mark.parametrize("D", [512, 4096])
@pytest.mark.parametrize("axis", ["token", "channel"])
def test_wide_rows(D: int, axis: str) -> None:
    x = random(2, 6, D)
    found = tokcore.kv_quantize(x, 2, axis, rotate=True)
    codes, scale, zero = meaning.quantize(x, 2, axis, D if axis == "token" else 6, False, None, True)
    assert torch.equal(found.packed, meaning.pack_rows(codes, 2))
    assert torch.equal(bits(found.scale), bits(scale))
    back = meaning.dequantize(codes, scale, zero, 2, axis, D if axis == "token" else 6, None, True, torch.float32)
    assert torch.equal(bits(found.dequantize()), bits(back))


# ---- what the device refuses -----------------------------------------------------------------------------------------


def raw_append(cache: tokcore.QuantizedKVCache, slots: list[int], capacity: int | None = None) -> None:
    k, v = (random(len(slots), 2, 32, seed=seed, dtype=torch.bfloat16) for seed in (5, 6))
    options = {"capacity": capacity or cache.capacity, "residual": cache.residual, "page_size": cache.page_size}
    options |= {"k_axis": cache.k_axis, "v_axis": cache.v_axis, "rotate": cache.rotate}
    cuda.kv_append(k, v, torch.tensor(slots), *cache.layer(0).operands(), **options)


@pytest.mark.parametrize(
    "slots",
    [
        [50, 50],  # twice
        [51],  # a gap
        [51, 50],  # not in order
        [49, 50],  # written before
        [50, -2],
        [50, 2 * 60],  # no such sequence
        [*range(50, 61)],  # a full sequence
    ],
    ids=str,
)
def test_bad_slots_change_nothing(slots: list[int]) -> None:
    cache = appended((50,), "mixed")
    cache.capacity = 60
    before = state_of(cache)
    raw_append(cache, slots)
    assert same(state_of(cache), before)
    raw_append(cache, [50, -1, 110, 111])  # and a good one goes through
    assert cache.lengths.tolist() == [51, 52]


def test_bad_pages_lengths_and_channel_scales_change_nothing() -> None:
    def twice(cache: tokcore.QuantizedKVCache) -> None:
        cache.layer(0).high.page_table[1, 3] = cache.layer(0).high.page_table[0, 1]  # type: ignore[union-attr]

    def outside(cache: tokcore.QuantizedKVCache) -> None:
        cache.layer(0).high.page_table[1, 3] = 99  # type: ignore[union-attr]

    def count(cache: tokcore.QuantizedKVCache) -> None:
        cache.layer(0).high.page_counts[0] = 99  # type: ignore[union-attr]

    def length(cache: tokcore.QuantizedKVCache) -> None:
        cache.layer(0).lengths[1] = -1

    def start(cache: tokcore.QuantizedKVCache) -> None:
        cache.layer(0).window_starts[1] = 2

    slots = [82 + i for i in range(5)] + [87 + 82 + i for i in range(5)]  # both sequences write their fourth page
    for spoil in (None, twice, outside, count, length, start):
        cache = appended((82,), "by channel", 2)
        if spoil is not None:
            spoil(cache)
        before = state_of(cache)
        raw_append(cache, slots, 87)
        assert same(state_of(cache), before) == (spoil is not None), spoil
    cache = appended((82,), "mixed", 2)
    lengths, starts, recent, high, low, _, _ = cache.layer(0).operands()
    bad = torch.ones(2, 32)
    bad[1, 7] = 0.0
    before = state_of(cache)
    k = random(1, 2, 32, dtype=torch.bfloat16)
    options = {"capacity": 87, "residual": cache.residual, "page_size": cache.page_size}
    cuda.kv_append(k, k, torch.tensor([82]), lengths, starts, recent, high, low, bad, None, **options)
    assert same(state_of(cache), before)


def test_a_bad_channel_scale_makes_nan() -> None:
    x = random(1, 4, 32)
    for value in (0.0, -1.0, float("nan"), float("inf")):
        scale = torch.ones(1, 32)
        scale[0, 20] = value
        _, made, _ = cuda.kv_quantize(x, 8, "token", 16, False, scale)
        assert made.isnan().tolist() == [[[False, True]] * 4]
