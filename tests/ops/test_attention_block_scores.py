"""What the case table of ``attention_block_scores`` cannot say."""

from __future__ import annotations

import pytest
import torch
from support import DTYPES, bits, threads
from torch import Tensor

from tokcore import attention_block_scores
from tokcore.ops.attention_block_scores import STATISTICS
from tokcore.reference.attention_block_scores import attention_block_scores as reference_scores

NAN, INF = float("nan"), float("inf")


def heads(M: int, N: int, D: int = 64, dtype: torch.dtype = torch.float32, H: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, H, M, D, generator=generator).to(dtype), torch.randn(1, 1, N, D, generator=generator).to(
        dtype
    )


@pytest.mark.parametrize("causal", [False, True])
def test_sums_add_up_to_one_a_query(causal: bool) -> None:
    q, k = heads(300, 500)
    sums = attention_block_scores(q, k, causal=causal)
    queries = torch.tensor([64.0, 64, 64, 64, 44])
    torch.testing.assert_close(sums.sum(-1), queries.expand(1, 2, 5), rtol=1e-6, atol=1e-5)


def test_statistics_belong_together() -> None:
    q, k = heads(128, 256)
    sums, most = (attention_block_scores(q, k, stat=stat) for stat in ("sum", "max"))
    torch.testing.assert_close(attention_block_scores(q, k, stat="incoherence"), most * 64 * 64 / sums)
    count = attention_block_scores(q, k, stat="count_above", threshold=float(most.min()) / 2)
    assert (count >= 1).all()
    assert (count <= 64 * 64).all()


@pytest.mark.parametrize("stat", STATISTICS)
def test_blocks_that_nobody_sees_are_zero(stat: str) -> None:
    q, k = heads(200, 100)
    scores = attention_block_scores(q, k, causal=True, stat=stat)
    assert scores.shape == (1, 2, 4, 2)
    assert not scores[:, :, 0].any()  # before every key
    assert not scores[:, :, 1, 1].any()
    assert scores[:, :, 3].any()


@pytest.mark.parametrize("stat", STATISTICS)
@pytest.mark.parametrize(("M", "N"), [(0, 5), (5, 0), (0, 0)])
def test_empty_tensors(stat: str, M: int, N: int) -> None:
    assert attention_block_scores(*heads(M, N), stat=stat).shape == (1, 2, -(-M // 64), -(-N // 64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stat", STATISTICS)
def test_thread_count_changes_no_bit(dtype: torch.dtype, stat: str) -> None:
    q, k = heads(333, 700, 72, dtype, H=4)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(attention_block_scores(q, k, stat=stat, causal=True))
    assert torch.equal(bits(found[1]), bits(found[0]))
    assert torch.equal(bits(found[2]), bits(found[0]))


def test_incoherence_of_weights_too_small_for_fp32() -> None:
    q, k = heads(64, 128)
    k[:, :, 64:] = k[:, :, 64:] / 10
    q = 8 * q
    k[:, :, :64] += 30 * torch.nn.functional.normalize(q[:, :1].mean(-2, keepdim=True), dim=-1)
    q = q + 500 * torch.nn.functional.normalize(q.mean(-2, keepdim=True), dim=-1)
    assert not attention_block_scores(q, k, stat="max")[..., 1].any()  # beyond the range of fp32
    found, expected = attention_block_scores(q, k, stat="incoherence"), reference_scores(q, k, stat="incoherence")
    assert (expected[..., 1] > 1).all()
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("stat", ["sum", "max", "incoherence"])
def test_a_bad_query_shows_in_its_row_of_blocks(value: float, stat: str) -> None:
    q, k = heads(200, 300)
    clean = attention_block_scores(q, k, stat=stat)
    q[0, 1, 70, 3] = value
    k[..., 3] = 1.0
    clean = attention_block_scores(torch.where(q.isfinite(), q, 0.0), k, stat=stat)
    scores = attention_block_scores(q, k, stat=stat)
    expected = torch.zeros_like(scores, dtype=torch.bool)
    expected[0, 1, 1] = True
    assert torch.equal(scores.isnan(), expected)
    assert torch.equal(scores[~expected], clean[~expected])


def test_nothing_exceeds_nan() -> None:
    q, k = heads(64, 64)
    q[0, 0, 5] = NAN
    found = attention_block_scores(q, k, stat="count_above", threshold=1e-6)
    assert found[0, 0, 0, 0] == 63 * 64


def test_no_gradient() -> None:
    q, k = (x.requires_grad_() for x in heads(64, 64))
    assert not attention_block_scores(q, k).requires_grad
