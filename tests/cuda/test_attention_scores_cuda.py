"""The CUDA kernels of ``attention_block_scores``, executed on the CPU."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))

import attention_simt as cuda
import pytest
import torch
from simt_support import POLICIES, Policy
from support import DTYPES, assert_error_rule, bits
from torch import Tensor

from tokcore import attention_block_scores
from tokcore.block_mask import BLOCKS
from tokcore.ops.attention_block_scores import STATISTICS
from tokcore.reference.attention_block_scores import attention_block_scores as reference_scores
from tokcore.testing import tables

NAN, INF = float("nan"), float("inf")

TABLE = tables()["attention_block_scores"]
QUICK = [case.name for case in TABLE.cases if "quick" in case.tags][::3]  # of every dtype others


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with cuda.in_place_of_the_cpu():
        yield


def heads(M: int, N: int, D: int, dtype: torch.dtype = torch.float32, H: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, *shape, generator=generator).to(dtype) for shape in ((H, M, D), (1, N, D)))
    return q, k


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Products of 16-bit elements are exact, so that all dtypes have the errors of fp32 sums."""
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=1e-12, msg=lambda text: f"{dtype}: {text}")


@pytest.mark.parametrize("name", QUICK)
def test_case(name: str) -> None:
    assert_error_rule(TABLE, TABLE.make_inputs(TABLE.case(name), "cpu", 0))


# More tiles than blocks of the grid, so that one takes several; the last tile with one half of its queries or both.
ORDER_CASES = [(400, 200, 64), (150, 130, 128), (200, 66, 200)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("M", "N", "D"), ORDER_CASES)
def test_every_order_of_threads_gives_the_same_bits(
    dtype: torch.dtype, M: int, N: int, D: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda.SETUP, "multiprocessors", 1)
    q, k = heads(M, N, D, dtype)
    for stat in ("incoherence", "count_above"):
        expected = bits(attention_block_scores(q, k, causal=True, stat=stat))
        for policy in (*POLICIES[1:], Policy(workers=2)):
            policy.use()
            assert torch.equal(expected, bits(attention_block_scores(q, k, causal=True, stat=stat))), str(policy)
        POLICIES[0].use()


@pytest.mark.parametrize("stat", STATISTICS)
@pytest.mark.parametrize("multiprocessors", [1, 2, 3])
def test_how_many_blocks_run_changes_no_bit(stat: str, multiprocessors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = heads(513, 130, 32, torch.bfloat16, H=3)
    monkeypatch.setattr(cuda.SETUP, "multiprocessors", 100)
    expected = bits(attention_block_scores(q, k, causal=True, stat=stat))
    monkeypatch.setattr(cuda.SETUP, "multiprocessors", multiprocessors)
    assert torch.equal(expected, bits(attention_block_scores(q, k, causal=True, stat=stat)))


@pytest.mark.parametrize("placement", ["end", "start"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [33, 72, 130, 255])
def test_nothing_outside_the_arrays_is_touched(
    dtype: torch.dtype, D: int, placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda.SETUP, "placement", placement)
    q, k = heads(67, 70, D, dtype)
    for stat in ("sum", "count_above"):
        found, expected = attention_block_scores(q, k, stat=stat), reference_scores(q, k, stat=stat)
        if stat == "sum":
            assert_close(found, expected, dtype)
        else:
            assert (found - expected).abs().max() <= 1  # a weight may lie on the threshold


# 200 queries before 140 keys: with causal the first 60 see nothing, and some blocks are seen by a few queries.
RAGGED = [(200, 140, False), (200, 140, True), (129, 321, True)]


@pytest.mark.parametrize(("dtype", "D"), [(torch.float32, 32), (torch.float32, 160), (torch.bfloat16, 96)])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("M", "N", "causal"), RAGGED)
def test_ragged_lengths(dtype: torch.dtype, D: int, block: tuple[int, int], M: int, N: int, causal: bool) -> None:
    q, k = heads(M, N, D, dtype)
    for stat in ("sum", "max", "incoherence"):
        found = attention_block_scores(q, k, block=block, causal=causal, stat=stat)
        assert_close(found, reference_scores(q, k, block=block, causal=causal, stat=stat), dtype)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("D", [64, 256])
@pytest.mark.parametrize("stat", STATISTICS)
def test_bad_queries_show_in_their_rows_of_blocks(stat: str, D: int, causal: bool) -> None:
    q, k = heads(200, 300, D)
    k[..., 3] = 1.0
    clean = attention_block_scores(q, k, stat=stat, causal=causal)
    q[0, 1, 70, 3], q[0, 0, 199, 3] = NAN, INF
    found, expected = (f(q, k, stat=stat, causal=causal) for f in (attention_block_scores, reference_scores))
    assert torch.equal(found.isnan(), expected.isnan())
    rows = torch.ones_like(found, dtype=torch.bool)
    rows[0, 1, 1], rows[0, 0, 3] = False, False
    assert torch.equal(found[rows], clean[rows])
    if stat == "count_above":
        assert (found <= clean).all()


@pytest.mark.parametrize("stat", STATISTICS)
def test_keys_whose_scores_are_minus_infinity(stat: str) -> None:
    # Rows past the last query hold zeros, of which such a key makes NaN: none of it may show.
    q, k = heads(70, 130, 64)
    q[..., 5] = q[..., 5].abs() + 0.1
    k[0, 0, 100, 5] = -INF
    found, expected = attention_block_scores(q, k, stat=stat), reference_scores(q, k, stat=stat)
    assert_close(found, expected, torch.float32)


def test_incoherence_of_weights_too_small_for_fp32() -> None:
    q, k = heads(128, 128, 64)
    k[:, :, 64:] /= 10
    direction = torch.nn.functional.normalize(q[:, :1].mean(-2, keepdim=True), dim=-1)
    k[:, :, :64] += 30 * direction
    q = 8 * q + 500 * direction
    assert not attention_block_scores(q, k, stat="max")[..., 1].any()  # beyond the range of fp32
    for block in ((64, 64), (128, 64)):
        found = attention_block_scores(q, k, block=block, stat="incoherence")
        expected = reference_scores(q, k, block=block, stat="incoherence")
        assert (expected[..., 1] > 1).all()
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=0.0)


def test_lengths_of_nothing() -> None:
    for M, N in ((0, 70), (70, 0), (0, 0)):
        for stat in STATISTICS:
            assert attention_block_scores(*heads(M, N, 64), stat=stat).shape == (1, 2, -(-M // 64), -(-N // 64))


def test_a_block_holds_no_more_than_its_elements() -> None:
    q, k = heads(130, 130, 40)
    counts = attention_block_scores(q, k, stat="count_above", threshold=1e-9, causal=True)
    expected = reference_scores(q, k, stat="count_above", threshold=1e-9, causal=True)
    assert torch.equal(counts.double(), expected)
    assert math.isclose(float(counts[0, 0].sum()), 130 * 131 / 2)
