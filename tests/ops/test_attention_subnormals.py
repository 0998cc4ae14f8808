"""Scores that lie far apart: weights below the normal range are zeros, and cost nothing extra."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch

import tokcore
from tokcore.reference.attention_block_scores import attention_block_scores as reference_scores
from tokcore.reference.block_sparse_attention import block_sparse_attention as reference

N = 1024
FULL = tokcore.BlockMask.full((N, N))


def inputs(spread: float, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, N, 64)
    return (spread * q).to(dtype), k.to(dtype), v.to(dtype)


def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    tokcore.block_sparse_attention(q, k, v, FULL)


def backward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    tokcore.block_sparse_attention(*leaves, FULL).sum().backward()  # type: ignore[call-overload]


def scores(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    tokcore.attention_block_scores(q, k)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("call", [forward, backward, scores])
def test_far_scores_cost_what_near_ones_do(call: Callable[..., None], dtype: torch.dtype) -> None:
    """Subnormal weights made it twelve times as slow. One thread's own time: others on the machine do not matter."""
    near, far = inputs(1.0, dtype), inputs(32.0, dtype)
    best = [float("inf")] * 2
    for _ in range(5):
        for number, tensors in enumerate((near, far)):
            start = time.thread_time()
            call(*tensors)
            best[number] = min(best[number], time.thread_time() - start)
    assert best[1] < 4 * best[0]


def test_far_scores_are_right_and_leave_the_thread_as_it_was() -> None:
    q, k, v = inputs(32.0, torch.float32)
    out, lse = tokcore.block_sparse_attention(q, k, v, FULL, return_lse=True)
    expected, expected_lse = reference(q, k, v, FULL)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        tokcore.attention_block_scores(q, k).double(), reference_scores(q, k), rtol=1e-3, atol=1e-3
    )
    tiny = torch.full((64,), 2.0**-126)
    assert (tiny / 4 > 0).all(), "subnormal results elsewhere are kept"
