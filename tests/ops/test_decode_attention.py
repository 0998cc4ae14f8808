"""What ``decode_attention`` promises beyond the case table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kv_support import filled, random, shuffle_pages
from support import DTYPES, bits, threads
from torch import Tensor

import tokcore
from tokcore.reference.decode_attention import decode_attention as reference

KINDS: dict[str, dict[str, Any]] = {
    "int8": {"high": "int8", "low": None},
    "int4 by channel": {"high": "int4", "low": None, "k_axis": "channel", "group": 32},
    "both by channel": {"high": ("int8", "int4"), "low": None, "k_axis": "channel", "v_axis": "channel", "v_group": 16},
    "mixed": {"high": "int8", "low": "int2", "high_ratio": 0.3},
}


def attend(q: Tensor, cache: tokcore.QuantizedKVCache, **options: Any) -> tuple[Tensor, Tensor]:
    found = tokcore.decode_attention(q, cache, 0, return_lse=True, **options)
    assert isinstance(found, tuple)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_unquantized_cache_is_sdpa(dtype: torch.dtype) -> None:
    kind = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    cache, k, v = filled(777, dtype=dtype, high=kind, low=None)
    q = random(2, 1, 8, 64, seed=4, dtype=dtype)
    expected = F.scaled_dot_product_attention(
        q.double().transpose(1, 2), k.double().transpose(1, 2), v.double().transpose(1, 2), enable_gqa=True
    ).transpose(1, 2)
    tolerance = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(attend(q, cache)[0].double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("M", [1, 5])
def test_kernel_error_alone(kind: str, dtype: torch.dtype, M: int) -> None:
    cache, _, _ = filled(1300, dtype=dtype, **KINDS[kind])
    q = random(2, M, 8, 64, seed=4, dtype=dtype)
    out, lse = attend(q, cache)
    expected, expected_lse = reference(q, cache, 0)
    tolerance = {torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=tolerance)


@pytest.mark.parametrize("M", [1, 12, 40])  # 4, 48 and 160 rows of queries a head
@pytest.mark.parametrize("shape", ["steps", "spike", "fall"])
@pytest.mark.parametrize("scale", [None, -0.125, 0.0])
def test_scores_that_grow_by_far(M: int, shape: str, scale: float | None) -> None:
    """Weights of a block refer to its first scores: far greater ones later must move the maximum."""
    L = 1500
    _, k, v = filled(L, dtype=torch.bfloat16, high="bf16", low=None)
    at = torch.arange(L)
    height = {"steps": at.div(96, rounding_mode="floor") * 3.0, "spike": (at == 700) * 70.0, "fall": 40.0 - at / 40}
    k[..., 0] = height[shape].to(torch.bfloat16)[:, None]
    cache = tokcore.QuantizedKVCache(1, 2, 2, 64, L + 40, high="bf16", low=None)
    cache.append(0, k, v)
    q = random(2, M, 8, 64, seed=4, dtype=torch.bfloat16)
    q[..., 0] = 8.0
    out, lse = attend(q, cache, scale=scale)
    expected, expected_lse = reference(q, cache, 0, scale=scale)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1.6e-2)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=2e-4)  # weights are good to 9e-5


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_company_change_no_bit(kind: str, dtype: torch.dtype) -> None:
    cache, k, v = filled(5000, B=3, dtype=dtype, **KINDS[kind])
    q = random(3, 2, 4, 64, seed=4, dtype=dtype)
    found = []
    for count in (1, 2, 3, 2):
        with threads(count):
            found.append(attend(q, cache, window=3000))
    for other in found[1:]:
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(other, found[0], strict=True))
    alone = tokcore.QuantizedKVCache(1, 1, 2, 64, 5064, dtype=dtype, **KINDS[kind])
    alone.append(0, k[1:2], v[1:2])
    for whole, part in zip(found[0], attend(q[1:2], alone, window=3000), strict=True):
        assert torch.equal(bits(whole[1:2]), bits(part))


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_order_of_pages_changes_no_bit(kind: str) -> None:
    cache, k, v = filled(1000, **KINDS[kind])
    shuffled = tokcore.QuantizedKVCache(1, 2, 2, 64, 1064, **KINDS[kind])
    shuffle_pages(shuffled)
    shuffled.append(0, k, v)
    q = random(2, 1, 4, 64, seed=4, dtype=torch.bfloat16)
    for a, b in zip(attend(q, cache), attend(q, shuffled), strict=True):
        assert torch.equal(bits(a), bits(b))


def poison(cache: tokcore.QuantizedKVCache) -> None:
    """NaN into everything that holds no token yet."""
    state = cache.layer(0)
    nan = float("nan")
    for part in (state.window_k, state.window_v, state.sink_k, state.sink_v):
        part.fill_(nan)
    for tier in (state.high, state.low):
        if tier is None:
            continue
        for part in (tier.k_pages, tier.v_pages, tier.k_scale, tier.k_zero, tier.v_scale, tier.v_zero):
            part.fill_(255 if part.dtype == torch.uint8 else nan)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("L", [0, 1, 3, 4, 5, 63, 64, 65, 127, 128, 129, 131, 132, 133, 195, 196, 197, 700])
def test_free_slots_are_never_read(dtype: torch.dtype, L: int) -> None:
    number = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    for options in (*KINDS.values(), {"high": number, "low": "int8"}):
        cache = tokcore.QuantizedKVCache(1, 1, 2, 64, 900, dtype=dtype, **options)
        poison(cache)
        k, v = random(1, L, 2, 64, dtype=dtype), random(1, L, 2, 64, seed=1, dtype=dtype)
        cache.append(0, k, v)
        q = random(1, 3, 4, 64, seed=4, dtype=dtype)
        out, lse = attend(q, cache)
        expected, expected_lse = reference(q, cache, 0)
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=8e-3)
        torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=8e-3)


def test_a_query_that_sees_nothing() -> None:
    cache = tokcore.QuantizedKVCache(1, 2, 2, 64, 100)
    out, lse = attend(random(2, 3, 4, 64, dtype=torch.bfloat16), cache)
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, torch.full_like(lse, -torch.inf))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("window", [1, 2, 70, 128, 300, 5000])
@pytest.mark.parametrize("sinks", [0, 4])
def test_sliding_windows(kind: str, window: int, sinks: int) -> None:
    cache, _, _ = filled(900, dtype=torch.float16, sinks=sinks, page_size=32, residual=40, **KINDS[kind])
    if kind == "mixed":
        tokcore.kv_retier(cache, 0, random(2, 2, 900), ratio=0.25)
    q = random(2, 4, 4, 64, seed=4, dtype=torch.float16)
    for mine, expected in zip(attend(q, cache, window=window), reference(q, cache, 0, window=window), strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=0, atol=2e-3)


def test_several_queries_are_queries_one_by_one() -> None:
    # A chain: what each query gives is what it gave when it was the last token.
    k, v = random(1, 600, 2, 64, dtype=torch.float32), random(1, 600, 2, 64, seed=1, dtype=torch.float32)
    q = random(1, 8, 4, 64, seed=4)
    cache = tokcore.QuantizedKVCache(1, 1, 2, 64, 700, dtype=torch.float32, high="int8", low=None)
    cache.append(0, k[:, :592], v[:, :592])
    single = []
    for i in range(8):
        cache.append(0, k[:, 592 + i : 593 + i], v[:, 592 + i : 593 + i])
        single.append(attend(q[:, i : i + 1], cache))
    out, lse = attend(q, cache)
    torch.testing.assert_close(out, torch.cat([o for o, _ in single], 1), rtol=0, atol=2e-6)
    torch.testing.assert_close(lse, torch.cat([x for _, x in single], 2), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_retiering_everything_up_loses_nothing_more(dtype: torch.dtype) -> None:
    options = {"high": "int8", "low": "int8", "high_ratio": 0.5}
    cache, _, _ = filled(900, dtype=dtype, **options)
    q = random(2, 1, 4, 64, seed=4, dtype=dtype)
    before = reference(q, cache, 0)[0]
    tokcore.kv_retier(cache, 0, random(2, 2, 900), ratio=0.3)
    after = reference(q, cache, 0)[0]
    torch.testing.assert_close(after, before, rtol=0, atol=4e-3)
    torch.testing.assert_close(attend(q, cache)[0].double(), after, rtol=0, atol=8e-3)


@pytest.mark.parametrize("kind", ["int8", "mixed"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(kind: str, bad: float) -> None:
    for where in ("q", "k", "v"):
        k, v = random(1, 700, 2, 64, dtype=torch.bfloat16), random(1, 700, 2, 64, seed=1, dtype=torch.bfloat16)
        q = random(1, 1, 4, 64, seed=4, dtype=torch.bfloat16)
        {"q": q[0, 0], "k": k[0, 300], "v": v[0, 300]}[where][1, 9] = bad
        cache = tokcore.QuantizedKVCache(1, 1, 2, 64, 800, **KINDS[kind])
        cache.append(0, k, v)
        out, _ = attend(q, cache)
        expected, _ = reference(q, cache, 0)
        hit = out.isnan().any(-1)[0, 0]
        assert hit.tolist() == expected.isnan().any(-1)[0, 0].tolist()
        assert hit.any()
        assert not hit.all()


@pytest.mark.parametrize("page_size", [16, 32, 64, 128])
@pytest.mark.parametrize("high", ["int8", "int4", "int2"])
def test_values_by_channel_in_groups_of_every_size(page_size: int, high: str) -> None:
    for group in (size for size in (16, 32, 64, 128) if size <= page_size):
        for options in ({"symmetric": True}, {"low": "int2", "high_ratio": 0.4, "rotate": True}):
            chosen = {"low": None, "residual": 20, **options, "v_axis": "channel", "v_group": group}
            cache, _, _ = filled(333, high=high, page_size=page_size, **chosen)
            assert cache.layer(0).high.v_scale.shape[2:] == (page_size // group, 64)  # type: ignore[union-attr]
            q = random(2, 2, 10, 64, seed=4, dtype=torch.bfloat16)
            for mine, expected in zip(attend(q, cache), reference(q, cache, 0), strict=True):
                torch.testing.assert_close(mine.double(), expected, rtol=0, atol=8e-3)


def test_a_group_of_values_that_is_not_finite_reaches_who_weighs_it() -> None:
    options = {"high": "int4", "low": None, "v_axis": "channel", "v_group": 16, "page_size": 32, "residual": 0}
    for dtype in DTYPES:
        k, v = random(1, 404, 2, 64, dtype=dtype), random(1, 404, 2, 64, seed=1, dtype=dtype)
        cache, spoiled = (tokcore.QuantizedKVCache(1, 1, 2, 64, 404, dtype=dtype, **options) for _ in range(2))
        cache.append(0, k, v)
        v[0, 100, 1, 9] = float("nan")
        spoiled.append(0, k, v)
        q = random(1, 1, 4, 64, seed=4, dtype=dtype)
        for a, b in zip(attend(q, cache, window=200), attend(q, spoiled, window=200), strict=True):
            assert torch.equal(bits(a), bits(b))
        found = attend(q, spoiled)[0].isnan()
        assert torch.equal(found, reference(q, spoiled, 0)[0].isnan())
        assert found.nonzero()[:, 2:].tolist() == [[2, 9], [3, 9]]


def test_strided_queries() -> None:
    cache, _, _ = filled(400)
    q = random(2, 3, 4, 64, seed=4, dtype=torch.bfloat16)
    expected = attend(q, cache)
    for other in (q.transpose(1, 2).contiguous().transpose(1, 2), q.mT.contiguous().mT):
        for a, b in zip(attend(other, cache), expected, strict=True):
            assert torch.equal(bits(a), bits(b))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"q": random(2, 1, 4, 64)}, TypeError, "argument 'q': expected dtype bfloat16 of the cache, got float32"),
        ({"q": random(2, 1, 3, 64, dtype=torch.bfloat16)}, ValueError, "argument 'q': expected H a positive multiple"),
        ({"q": random(1, 1, 4, 64, dtype=torch.bfloat16)}, ValueError, "argument 'q': expected shape [2, 1, 4, 64]"),
        ({"q": [1.0]}, TypeError, "argument 'q': expected a Tensor, got list"),
        ({"softcap": 0.0}, ValueError, "argument 'softcap': expected a finite value > 0 or None, got 0.0"),
        ({"window": 0}, ValueError, "argument 'window': expected a value >= 1 or None, got 0"),
        ({"window": 2.0}, TypeError, "argument 'window': expected an int or None, got float"),
        ({"scale": float("nan")}, ValueError, "argument 'scale': expected a finite value or None, got nan"),
        ({"layer": 1}, ValueError, "argument 'layer': expected a value in [0, 0] (layers - 1), got 1"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    cache, _, _ = filled(10)
    given = {"q": random(2, 1, 4, 64, dtype=torch.bfloat16), "cache": cache, "layer": 0, **change}
    with pytest.raises(error) as raised:
        tokcore.decode_attention(**given)
    assert words in str(raised.value)
