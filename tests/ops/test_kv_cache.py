"""The cache: appending, failing to, freeing, and a random walk against a plain model of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kv_support import by_position, filled, random, same, shuffle_pages, state_of
from support import threads
from torch import Tensor

import tokcore

TWO_TIERS = {"high": "int8", "low": "int4", "page_size": 16, "residual": 20, "sinks": 3}


def test_tokens_in_any_pieces_make_the_same_cache() -> None:
    k, v = random(2, 300, 2, 64, dtype=torch.bfloat16), random(2, 300, 2, 64, seed=1, dtype=torch.bfloat16)
    found = []
    for sizes in ([300], [1] * 300, [7, 100, 1, 192], [299, 1]):
        cache = tokcore.QuantizedKVCache(1, 2, 2, 64, 320, **TWO_TIERS)
        done = 0
        for size in sizes:
            cache.append(0, k[:, done : done + size], v[:, done : done + size])
            done += size
        tokens = [by_position(cache, b) for b in range(2)]
        found.append([part for token in tokens for part in token])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


def test_threads_change_no_byte() -> None:
    found = []
    for count in (1, 2, 3):
        with threads(count):
            cache, _, _ = filled(500, rotate=True, **TWO_TIERS)
            tokcore.kv_retier(cache, 0, random(2, 2, 500), ratio=0.4)
            found.append([by_position(cache, b) for b in range(2)])
    for other in found[1:]:
        for mine, first in zip(other, found[0], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, first, strict=True))


def test_a_copy_goes_its_own_way() -> None:
    cache, k, v = filled(40, **TWO_TIERS)
    other = copy.deepcopy(cache)
    before = state_of(cache)
    for _ in range(3):
        other.append(0, k[:, :1], v[:, :1])
    assert same(state_of(cache), before)
    cache.append(0, k[:, :1], v[:, :1])
    assert (cache.lengths.tolist(), other.lengths.tolist()) == ([41, 41], [43, 43])


def test_ragged_lengths() -> None:
    cache = tokcore.QuantizedKVCache(2, 3, 2, 64, 100, **TWO_TIERS)
    k, v = random(3, 90, 2, 64, dtype=torch.bfloat16), random(3, 90, 2, 64, seed=1, dtype=torch.bfloat16)
    cache.append(1, k, v, [0, 90, 41])
    assert cache.layer(1).lengths.tolist() == [0, 90, 41]
    assert cache.lengths.tolist() == [0, 0, 0]  # the first layer's
    for b, length in enumerate((0, 90, 41)):
        tokens = by_position(cache, b, layer=1)
        assert tokens.positions[0].tolist() == list(range(length))
        edge = (k[b, :length].transpose(0, 1) - tokens.k).abs().amax() if length else 0
        assert float(edge) < 0.5


# ---- what fails leaves everything as it was --------------------------------------------------------------------------


def slots_error(cache: tokcore.QuantizedKVCache, slots: list[int], words: str) -> None:
    before = state_of(cache)
    k = random(len(slots), cache.kv_heads, cache.head_dim, seed=5, dtype=cache.dtype)
    with pytest.raises(ValueError, match=words):
        tokcore.kv_append(cache, 0, k, k, torch.tensor(slots))
    assert same(state_of(cache), before)


def test_bad_slots() -> None:
    cache, _, _ = filled(40, capacity=50, **TWO_TIERS)
    slots_error(cache, [40, 90, 40], r"'slot_mapping': expected 41 \(the next slot of sequence 0\), got 40 at 2")
    slots_error(cache, [39], r"expected 40 \(the next slot of sequence 0\), got 39 at 0")
    slots_error(cache, [42], r"expected 40 \(the next slot of sequence 0\), got 42 at 0")
    slots_error(cache, [100], r"expected -1 or a value in \[0, 100\) \(B \* capacity\), got 100 at 0")
    slots_error(cache, [-2], r"expected -1 or a value in \[0, 100\)")
    slots_error(cache, [*range(40, 50), 90, 49], r"expected room for another token in sequence 0 \(capacity 50\)")


def test_a_full_cache_raises_before_anything_is_written() -> None:
    cache, _, _ = filled(40, capacity=50, **TWO_TIERS)
    before = state_of(cache)
    k = random(2, 11, 2, 64, seed=3, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"argument 'k': expected at most 50 tokens a sequence \(capacity\), got 51"):
        cache.append(0, k, k)
    assert same(state_of(cache), before)
    cache.append(0, k, k, [10, 3])
    assert cache.lengths.tolist() == [50, 43]


def test_page_tables_that_point_outside() -> None:
    cache, k, v = filled(80, **TWO_TIERS)
    high = cache.layer(0).high
    assert high is not None
    for page in (-1, 10**6):
        good = high.page_table[0, 0].clone()
        high.page_table[0, 0] = page
        before = state_of(cache)
        with pytest.raises(ValueError, match=r"argument 'high.page_table': expected a value in \[0, \d+\) \(pages\)"):
            cache.append(0, k[:, :1], v[:, :1])
        with pytest.raises(ValueError, match=r"argument 'high.page_table'"):
            tokcore.decode_attention(random(2, 1, 4, 64, dtype=torch.bfloat16), cache, 0)
        with pytest.raises(ValueError, match=r"argument 'high.page_table'"):
            tokcore.kv_retier(cache, 0, random(2, 2, 200), ratio=0.5)
        assert same(state_of(cache), before)
        high.page_table[0, 0] = good


def test_a_page_for_two_places_raises() -> None:
    cache = tokcore.QuantizedKVCache(1, 1, 2, 64, 200, high="int8", low=None, page_size=16, residual=0, sinks=0)
    high = cache.layer(0).high
    assert high is not None
    high.page_table[0, 1] = high.page_table[0, 0]
    k = random(1, 40, 2, 64, dtype=torch.bfloat16)
    before = state_of(cache)
    with pytest.raises(ValueError, match=r"argument 'high.page_table': expected a page of its own"):
        cache.append(0, k, k)
    assert same(state_of(cache), before)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"head_dim": 80}, NotImplementedError, "argument 'head_dim': expected a multiple of 32 in [32, 256], got 80"),
        ({"page_size": 48}, ValueError, "argument 'page_size': expected 16, 32, 64 or 128, got 48"),
        ({"high": "int3"}, NotImplementedError, "argument 'high': expected 'int8', 'int4', 'int2', 'bf16' of dtype"),
        ({"high": ("bf16", "int4")}, NotImplementedError, "argument 'high': expected 'int8'"),
        ({"low": "fp16"}, NotImplementedError, "argument 'low': expected 'int8', 'int4', 'int2', 'bf16' of dtype"),
        ({"k_axis": "head"}, ValueError, "argument 'k_axis'"),
        ({"v_axis": None}, ValueError, "argument 'v_axis': expected 'token' or 'channel', got 'None'"),
        (
            {"v_axis": "channel", "v_group": 128},
            NotImplementedError,
            "argument 'v_group': expected 16, 32, 64 or 128 dividing 64, or None for all of it, got 128",
        ),
        ({"group": 24}, NotImplementedError, "argument 'group': expected 16, 32, 64 or 128 dividing 64"),
        ({"head_dim": 96, "rotate": True}, ValueError, "argument 'rotate': expected False unless D is a power of two"),
        ({"dtype": torch.float64}, TypeError, "argument 'dtype': expected dtype float32 or bfloat16 or float16"),
        ({"high_ratio": 1.5}, ValueError, "argument 'high_ratio': expected a value in (0, 1) with two tiers, got 1.5"),
        ({"capacity": 0}, ValueError, "argument 'capacity'"),
        (
            {"k_channel_scale": torch.zeros(1, 2, 64)},
            ValueError,
            "argument 'k_channel_scale': expected finite values > 0",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], words: str) -> None:
    given: dict[str, Any] = {"layers": 1, "batch": 1, "kv_heads": 2, "head_dim": 64, "capacity": 100, **options}
    with pytest.raises(error) as raised:
        tokcore.QuantizedKVCache(**given)
    assert words in str(raised.value)
    assert str(raised.value).startswith("tokcore.QuantizedKVCache: ")


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"high": "int8", "low": None}, 0.53),
        ({"high": "int4", "low": None}, 0.28),
        ({"high": "int8", "low": "int2", "high_ratio": 0.2}, 0.23),
    ],
)
def test_nbytes_is_what_is_allocated(options: dict[str, Any], most: float) -> None:
    cache = tokcore.QuantizedKVCache(2, 1, 8, 128, 32768, **options)
    pieces = [*cache._recent.values(), cache._lengths, cache._window_starts, *(slots.tensor for slots in cache._slots)]
    for tier in cache._tiers.values():
        pieces += [] if tier is None else tier.tensors()
    assert cache.nbytes == sum(piece.untyped_storage().nbytes() for piece in pieces)
    assert cache.nbytes <= most * 2 * 2 * 8 * 128 * 32768 * 2


@pytest.mark.parametrize("name", list(tokcore.KV_PRESETS))
def test_presets(name: str) -> None:
    cache = tokcore.QuantizedKVCache.from_preset(name, 1, 2, 2, 64, 3000)
    k, v = random(2, 2900, 2, 64, dtype=torch.bfloat16), random(2, 2900, 2, 64, seed=1, dtype=torch.bfloat16)
    cache.append(0, k, v)
    retier = tokcore.KV_PRESETS[name].retier
    if retier:
        tokcore.kv_retier(cache, 0, random(2, 2, 2900).pow(4), **retier)  # peaked, as attention is
    q = random(2, 1, 4, 64, seed=2, dtype=torch.bfloat16)
    assert isinstance(out := tokcore.decode_attention(q, cache, 0), Tensor)
    assert out.isfinite().all()
    held = by_position(cache, 0).positions.size(1)
    assert held == (2900 if name != "streaming" else cache.sinks + int(cache.lengths[0] - cache._window_starts[0, 0]))


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ValueError, match="'mikv' or 'zipcache' or 'zipvl' or 'kivi' or 'int8' or 'int4' or 'str"):
        tokcore.QuantizedKVCache.from_preset("h2o", 1, 1, 1, 64, 100)


# ---- a random walk ---------------------------------------------------------------------------------------------------


class CacheMachine(RuleBasedStateMachine):
    """A cache beside the plain list of what was put into it."""

    @initialize(
        page_size=st.sampled_from([16, 32]),
        residual=st.sampled_from([0, 5, 40]),
        sinks=st.sampled_from([0, 3]),
        kinds=st.sampled_from([("int8", "int4"), ("fp32", "int8"), ("int8", None)]),
        ratio=st.sampled_from([0.3, 0.7]),
        axes=st.tuples(*[st.sampled_from(["token", "channel"])] * 2),
    )
    def make(
        self,
        page_size: int,
        residual: int,
        sinks: int,
        kinds: tuple[str, str | None],
        ratio: float,
        axes: tuple[str, str],
    ) -> None:
        options: dict[str, Any] = {"page_size": page_size, "residual": residual, "sinks": sinks, "high_ratio": ratio}
        options |= {"k_axis": axes[0], "v_axis": axes[1]}
        self.capacity, self.seed = 150, 0
        self.cache = tokcore.QuantizedKVCache(
            1, 2, 2, 32, self.capacity, high=kinds[0], low=kinds[1], dtype=torch.float32, **options
        )
        shuffle_pages(self.cache)
        self.model = [torch.empty(2, 0, 2, 32), torch.empty(2, 0, 2, 32)]  # of each sequence [k or v, n, Hkv, D]

    @rule(sizes=st.tuples(st.integers(0, 70), st.integers(0, 70)))
    def append(self, sizes: tuple[int, int]) -> None:
        self.seed += 1
        new = random(2, 2, max(sizes), 2, 32, seed=self.seed)
        fits = all(have.size(1) + size <= self.capacity for have, size in zip(self.model, sizes, strict=True))
        before = state_of(self.cache)
        if not fits:
            with pytest.raises(ValueError, match="capacity"):
                self.cache.append(0, new[0], new[1], sizes)
            assert same(state_of(self.cache), before)
            return
        self.cache.append(0, new[0], new[1], sizes)
        for b, size in enumerate(sizes):
            self.model[b] = torch.cat([self.model[b], new[:, b, :size]], dim=1)

    @rule(row=st.integers(0, 1))
    def free(self, row: int) -> None:
        self.cache.free([row])
        self.model[row] = self.model[row][:, :0]

    @precondition(lambda self: self.cache.low is not None)
    @rule(ratio=st.floats(0, 1), seed=st.integers(0, 9))
    def retier(self, ratio: float, seed: int) -> None:
        scores = random(2, 2, self.capacity, seed=seed).round()
        high = tokcore.kv_retier(self.cache, 0, scores, ratio=ratio)
        state = self.cache.layer(0)
        assert state.high is not None
        assert high.tolist() == (state.high.page_counts * self.cache.page_size).tolist()

    @invariant()
    def holds_what_was_appended(self) -> None:
        if not hasattr(self, "cache"):
            return
        for b in range(2):
            tokens = by_position(self.cache, b)
            n = self.model[b].size(1)
            assert tokens.positions.tolist() == [list(range(n))] * 2
            for mine, theirs in zip((tokens.k, tokens.v), self.model[b], strict=True):
                assert n == 0 or float((mine - theirs.transpose(0, 1)).abs().max()) < 1.5
                start = int(self.cache.layer(0).window_starts[b])
                exact = [*range(min(n, self.cache.sinks)), *range(start, n)]
                assert torch.equal(mine[:, exact], theirs.transpose(0, 1)[:, exact].double())


CacheMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=12, deadline=None, derandomize=True)
TestCacheMachine = CacheMachine.TestCase
