"""Scores that lie far apart in PARO attention: weights below the normal range are zeros, and cost nothing extra."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

import tokcore
from tokcore.reference.block_sparse_attention import block_sparse_attention as reference

GRID = (4, 16, 16)
N = 1024
FULL = tokcore.BlockMask.full((N, N))


def inputs(spread: float) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, N, 64)
    return (spread * q).bfloat16(), k.bfloat16(), v.bfloat16()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("qk", "pv"), [("bf16", "bf16"), ("int8", "bf16"), ("int8", "fp8"), ("int8", "int8")])
def test_far_scores_cost_what_near_ones_do(qk: str, pv: str) -> None:
    """One thread's own time: others on the machine do not matter."""
    operands = [tokcore.paro_prepare(*inputs(spread), [2, 5], GRID, qk=qk, pv=pv) for spread in (1.0, 32.0)]
    best = [float("inf")] * 2
    for _ in range(5):
        for number, prepared in enumerate(operands):
            start = time.thread_time()
            prepared.attend(FULL)
            best[number] = min(best[number], time.thread_time() - start)
    assert best[1] < 3 * best[0]


def test_far_scores_are_right_and_leave_the_thread_as_it_was() -> None:
    q, k, v = inputs(32.0)
    out, lse = tokcore.paro_attention(q, k, v, FULL, [2, 5], GRID, qk="bf16", pv="bf16", return_lse=True)
    expected, expected_lse = reference(q, k, v, FULL)
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-4)
    tiny = torch.full((64,), 2.0**-126)
    assert (tiny / 4 > 0).all(), "subnormal results elsewhere are kept"
