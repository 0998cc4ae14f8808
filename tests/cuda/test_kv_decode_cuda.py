"""``decode_attention`` on the CUDA kernels: its case table, the tests of the public function, and bits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))

import kv_simt as cuda
import pytest
import torch
from kv_support import filled, random, shuffle_pages
from simt_support import POLICIES, Policy, simt
from support import assert_error_rule, bits
from test_tree_attention import test_a_node_never_sees_what_is_no_ancestor as test_a_node_never_sees_what_is_no_ancestor
from test_tree_attention import test_requests_without_a_tree as test_requests_without_a_tree
from torch import Tensor

import tokcore
from tokcore.reference.decode_attention import decode_attention as reference
from tokcore.testing import tables
from tokcore.testing.table import Case

TABLE = tables()["decode_attention"]
# Every tier meets every scheme in either half of the plain cases; of the trees a third is enough.
QUICK = [case.name for case in TABLE.cases if "quick" in case.tags]
TREES = [name for name in QUICK if "tree" in name]
CASES = [name for name in QUICK if "tree" not in name][::2] + TREES[::3]


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with cuda.in_place_of_the_cpu("decode_attention"):
        yield


def shortened(case: Case) -> Case:
    """At most 330 tokens and 40 queries: two splits of pages, and two blocks of rows."""
    parameters = dict(case.parameters)
    parameters["L"] = min(parameters["L"], 330)
    if "M" in parameters:
        parameters["M"] = min(parameters["M"], 40)
    return Case(case.name, parameters, case.tags)


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    assert_error_rule(TABLE, TABLE.make_inputs(shortened(TABLE.case(name)), "cpu", 0))


# ---- what the table cannot say ---------------------------------------------------------------------------------------

BY_CHANNEL = {"k_axis": "channel", "v_axis": "channel"}
KINDS: dict[str, dict[str, Any]] = {
    "mixed": {"high": "int8", "low": "int2", "high_ratio": 0.4, "page_size": 32},
    "by channel": {"high": "int4", "low": None, "k_axis": "channel", "group": 32, "page_size": 64},
    "groups": {"high": ("int4", "int8"), "low": None, "group": 16, "v_group": 32, "page_size": 128},
    "numbers": {"high": "bf16", "low": "int4", "page_size": 16},
    "both by channel": {**BY_CHANNEL, "high": "int2", "low": "int8", "page_size": 32, "v_group": 16},
    "pages beyond a tile": {**BY_CHANNEL, "high": ("int8", "int4"), "low": None, "page_size": 128, "group": 16},
}


def attend(q: Tensor, cache: tokcore.QuantizedKVCache, **options: Any) -> tuple[Tensor, Tensor]:
    found = tokcore.decode_attention(q, cache, 0, return_lse=True, **options)
    assert isinstance(found, tuple)
    return found


def equal(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(bits(a), bits(b)) for a, b in zip(left, right, strict=True))


def close(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float = 8e-3) -> None:
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_order_of_threads_changes_no_bit(kind: str, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, _, _ = filled(300, B=1, Hkv=1, residual=40, **KINDS[kind])
    q = random(1, 2, 3, 64, seed=4, dtype=torch.bfloat16)
    expected = attend(q, cache)
    policy.use()
    monkeypatch.setattr(cuda.Arrays, "placement", "start")
    assert equal(attend(q, cache), expected)


@pytest.mark.parametrize("kind", list(KINDS))
def test_pages_company_and_calls_change_no_bit(kind: str) -> None:
    options = {"residual": 33, **KINDS[kind]}
    cache, k, v = filled(400, **options)
    q = random(2, 3, 4, 64, seed=4, dtype=torch.bfloat16)
    expected = attend(q, cache, window=250)
    assert equal(attend(q, cache, window=250), expected)
    shuffled = tokcore.QuantizedKVCache(1, 2, 2, 64, 464, **options)
    shuffle_pages(shuffled)
    shuffled.append(0, k, v)
    assert equal(attend(q, shuffled, window=250), expected)
    alone = tokcore.QuantizedKVCache(1, 1, 2, 64, 464, **options)
    alone.append(0, k[1:], v[1:])
    one = attend(q[1:], alone, window=250)
    assert equal(one, (expected[0][1:], expected[1][1:]))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("L", [0, 1, 4, 5, 36, 37, 132, 165])
def test_free_slots_are_never_read(kind: str, L: int) -> None:
    cache = tokcore.QuantizedKVCache(1, 1, 2, 64, 300, residual=32, **KINDS[kind])
    state = cache.layer(0)
    for part in (state.window_k, state.window_v, state.sink_k, state.sink_v):
        part.fill_(float("nan"))
    for tier in (state.high, state.low):
        for part in [] if tier is None else tier.tensors()[:6]:
            part.fill_(255 if part.dtype == torch.uint8 else float("nan"))
    cache.append(0, random(1, L, 2, 64, dtype=torch.bfloat16), random(1, L, 2, 64, seed=1, dtype=torch.bfloat16))
    q = random(1, 3, 4, 64, seed=4, dtype=torch.bfloat16)
    close(attend(q, cache), reference(q, cache, 0))


@pytest.mark.parametrize("kind", ["mixed", "numbers"])
@pytest.mark.parametrize("window", [1, 2, 70, 300, 5000])
@pytest.mark.parametrize("sinks", [0, 4])
def test_sliding_windows(kind: str, window: int, sinks: int) -> None:
    cache, _, _ = filled(420, dtype=torch.bfloat16, sinks=sinks, residual=40, **KINDS[kind])
    q = random(2, 4, 4, 64, seed=4, dtype=torch.bfloat16)
    close(attend(q, cache, window=window), reference(q, cache, 0, window=window))


def test_many_splits_and_long_windows() -> None:
    for options in ({"high": "int2", "low": None, "residual": 0}, {"high": None, "low": None, "residual": 700}):
        cache, _, _ = filled(1500, B=1, Hkv=1, D=32, page_size=128, **options)
        q = random(1, 1, 2, 32, seed=4, dtype=torch.bfloat16)
        close(attend(q, cache), reference(q, cache, 0))


@pytest.mark.parametrize("G", [1, 5, 16])
@pytest.mark.parametrize("M", [1, 7])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_rows_of_any_number(G: int, M: int, dtype: torch.dtype) -> None:
    cache, _, _ = filled(150, B=1, D=96, dtype=dtype, high="int8", low="int4", residual=16, page_size=16)
    q = random(1, M, 2 * G, 96, seed=4, dtype=dtype)
    close(attend(q, cache), reference(q, cache, 0), 4e-6 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e4, 1e30])
def test_values_of_any_size(scale: float) -> None:
    k = random(1, 200, 1, 64)
    v = random(1, 200, 1, 64, seed=1)
    v[:, ::7] *= scale
    for options in ({"high": "int8", "low": None}, {"high": "int4", "low": None, "v_group": 16}):
        cache = tokcore.QuantizedKVCache(1, 1, 1, 64, 200, residual=0, sinks=0, page_size=16, **options)
        cache.append(0, k.bfloat16() * min(scale, 10.0), v.bfloat16())
        q = random(1, 1, 2, 64, seed=4, dtype=torch.bfloat16)
        out, lse = attend(q, cache)
        expected, expected_lse = reference(q, cache, 0)
        size = float(expected.abs().max())
        torch.testing.assert_close(out.double() / size, expected / size, rtol=0, atol=8e-3)
        torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=8e-3)


@pytest.mark.parametrize("kind", ["mixed", "numbers"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(kind: str, bad: float) -> None:
    for where in ("q", "k", "v"):
        k, v = random(1, 300, 2, 64, dtype=torch.bfloat16), random(1, 300, 2, 64, seed=1, dtype=torch.bfloat16)
        q = random(1, 1, 4, 64, seed=4, dtype=torch.bfloat16)
        {"q": q[0, 0], "k": k[0, 100], "v": v[0, 100]}[where][1, 9] = bad
        cache = tokcore.QuantizedKVCache(1, 1, 2, 64, 400, residual=40, **KINDS[kind])
        cache.append(0, k, v)
        out, _ = attend(q, cache)
        expected, _ = reference(q, cache, 0)
        hit = ~out.isfinite().all(-1)[0, 0]
        assert hit.tolist() == (~expected.isfinite().all(-1))[0, 0].tolist()
        assert hit.any()
        assert not hit.all()


def test_bad_values_make_nan_and_no_address() -> None:
    q = random(2, 2, 4, 64, seed=4, dtype=torch.bfloat16)
    for name, value in (("lengths", -1), ("lengths", 2**30 + 1), ("window_starts", 3), ("page_counts", 99)):
        cache, _, _ = filled(300, high="int8", low=None, residual=40)
        expected = attend(q, cache)
        state = cache.layer(0)
        assert state.high is not None
        spoiled = state.high.page_counts if name == "page_counts" else getattr(state, name)
        spoiled[1] = value
        out, lse = attend(q, cache)
        assert bool(out[1].isnan().all())
        assert bool(lse[1].isnan().all())
        assert torch.equal(bits(out[0]), bits(expected[0][0]))
    for options in ({"high": "int8", "low": None}, {"high": "bf16", "low": None}):
        for page in (-1, 99):
            cache, _, _ = filled(300, residual=40, page_size=32, **options)
            state = cache.layer(0)
            assert state.high is not None
            state.high.page_table[1, 2] = page
            out, _ = attend(q, cache)
            assert bool(out[1].isnan().all())
            assert bool(out[0].isfinite().all())
            seen, _ = attend(q, cache, window=100)  # which does not reach that page
            assert bool(seen.isfinite().all())


def test_strided_queries() -> None:
    cache, _, _ = filled(200, residual=40)
    q = random(2, 3, 4, 64, seed=4, dtype=torch.bfloat16)
    other = q.transpose(1, 2).contiguous().transpose(1, 2)
    assert equal(attend(other, cache), attend(q, cache))


def test_splits_depend_on_the_sequence_alone() -> None:
    for unit in (1, 16, 32, 64, 128):
        for tokens in (1, 255, 256, 257, 16384, 16385, 131072, 2**30):
            size = simt.split_tokens(tokens, unit)
            assert size % 128 == 0
            assert size % unit == 0
            assert -(-tokens // size) <= simt.most_splits(tokens) <= 64
