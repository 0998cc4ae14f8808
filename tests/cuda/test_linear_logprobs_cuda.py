"""The CUDA kernels of the cross-entropy family, executed on the CPU: what launchers promise beside the case tables.

The tables and the tests of the public functions run on them in test_linear_logprobs_cuda_ops.py.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import linear_logprobs_simt as cuda
import pytest
import torch
from simt_support import POLICIES, Policy, simt
from torch import Tensor

CAPABILITIES = (80, 90)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=CAPABILITIES, ids=lambda c: f"sm_{c}")
def capability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The calls of a test run the kernels of this compute capability."""
    monkeypatch.setattr(cuda.SETUP, "capability", request.param)
    return int(request.param)


def operands(T: int, V: int, C: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """e, c, indices [T, 3], bias with logits of standard deviation around 2."""
    generator = torch.Generator().manual_seed(seed)
    e = 2 * torch.randn(T, C, generator=generator)
    c = torch.randn(V, C, generator=generator) / math.sqrt(max(C, 1))
    indices = torch.randint(V, (T, 3), generator=generator)
    indices[torch.rand(T, generator=generator) < 0.2, 0] = -100
    return e.to(dtype), c.to(dtype), indices, torch.randn(V, generator=generator)


def everything(
    e: Tensor, c: Tensor, indices: Tensor, bias: Tensor, filter_eps: float | None, **options: Any
) -> dict[str, Tensor]:
    """All that forward, backward and the chunked loss return for one input."""
    common: dict[str, Any] = {"ignore_index": -100, "shift": 1, "softcap": 4.0, "temperature": 0.9}
    topk = min(4, c.size(0))
    names = ("lse", "entropy", "gathered", "logit_sum", "topk_values", "topk_indices", "kept")
    forward = cuda.forward(
        e, c, indices, bias, **common, entropy=True, logit_sum=True, topk=topk, filter_eps=filter_eps
    )
    found = dict(zip(names, forward, strict=True))
    generator = torch.Generator().manual_seed(5)
    T, K = indices.shape
    grads = [torch.randn(T, generator=generator) for _ in range(3)]
    grad_logits = torch.randn(T, K, generator=generator)
    backward = cuda.backward(
        *(e, c, indices, found["gathered"], found["lse"], found["kept"], grads[0], grad_logits, grads[1]),
        None if filter_eps else grads[2],
        bias,
        **common,
        filter_eps=filter_eps,
        need_bias=True,
        **options,
    )
    found |= dict(zip(("grad_e", "grad_c", "grad_bias"), backward, strict=True))
    if filter_eps is None:
        panel = cuda.words(c.size(0)) * 32 * 32 * 4
        scales = [x.abs() / T for x in grads]
        chunked = cuda.chunked(
            *(e, c, indices[:, 0].contiguous(), *scales, bias), **common, workspace_bytes=2 * panel, need_bias=True
        )
        names = ("loss", "chunk_lse", "chunk_logits", "chunk_sum", "chunk_grad_e", "chunk_grad_c", "chunk_grad_bias")
        found |= dict(zip(names, chunked, strict=True))
    return found


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """The names of the tensors that differ."""

    def bits(x: Tensor) -> Tensor:
        return x.reshape(-1).view(torch.uint8)

    return [name for name in a if not torch.equal(bits(a[name]), bits(b[name]))]


@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("filter_eps", [None, 1e-3])
def test_every_order_of_threads_gives_the_same_bits(dtype: torch.dtype, filter_eps: float | None) -> None:
    inputs = operands(150, 300, 40, dtype)
    expected = everything(*inputs, filter_eps)
    for policy in POLICIES[1:]:
        policy.use()
        assert not same_bits(expected, everything(*inputs, filter_eps)), str(policy)
    Policy(workers=2).use()
    assert not same_bits(expected, everything(*inputs, filter_eps))


@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("filter_eps", [None, 1e-3])
@pytest.mark.parametrize("placement", ["end", "start"])
def test_the_size_of_the_machine_changes_no_bit(
    dtype: torch.dtype, filter_eps: float | None, placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More multiprocessors cut the vocabulary into more splits.
    inputs = operands(70, 900, 24, dtype)
    monkeypatch.setattr(cuda.SETUP, "placement", placement)
    found = []
    for multiprocessors in (1, 3, 200):
        monkeypatch.setattr(cuda.SETUP, "multiprocessors", multiprocessors)
        found.append(everything(*inputs, filter_eps))
    assert not same_bits(found[0], found[1])
    assert not same_bits(found[0], found[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "V", "C"), [s for s in itertools.product((1, 7, 127, 129), repeat=3) if sum(s) % 2])
def test_odd_sizes(dtype: torch.dtype, T: int, V: int, C: int) -> None:
    e, c, indices, bias = operands(T, V, C, dtype, seed=T + V + C)
    indices = indices.clamp(min=0)
    lse, entropy, gathered, *_ = cuda.forward(e, c, indices, bias, entropy=True, topk=1)
    z = e.double() @ c.double().T + bias
    torch.testing.assert_close(lse.double(), z.logsumexp(1), rtol=2e-6, atol=1e-5)
    torch.testing.assert_close(gathered.double(), z.gather(1, indices), rtol=2e-6, atol=1e-5)
    exact = -(z.softmax(1) * z.log_softmax(1)).sum(1)
    torch.testing.assert_close(entropy.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(0, 7, 5), (3, 7, 0), (0, 1, 0)])
def test_nothing_to_multiply(dtype: torch.dtype, sizes: tuple[int, int, int]) -> None:
    e, c, indices, bias = operands(*sizes, dtype)
    found = everything(e, c, indices, bias, None)
    T, V, C = sizes
    assert found["grad_e"].shape == (T, C)
    assert found["grad_c"].shape == (V, C)
    assert all(x.isfinite().all() for x in found.values())
    if T == 0:
        assert not found["grad_bias"].any()
        assert found["loss"] == 0


@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_positions_ignored(dtype: torch.dtype) -> None:
    e, c, indices, bias = operands(40, 70, 24, dtype)
    e = torch.full_like(e, math.nan)
    indices[:, 0] = -100
    for filter_eps in (None, 1e-3):
        found = everything(e, c, indices, bias, filter_eps)
        assert (found.pop("topk_indices") == -1).all()
        assert not [name for name, value in found.items() if value.any()]


@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [-1, 70, 2**31, -(2**62)])
def test_an_index_out_of_range_makes_its_loss_nan_and_nothing_else(dtype: torch.dtype, value: int) -> None:
    e, c, indices, bias = operands(40, 70, 24, dtype)
    indices[:, 0] = indices[:, 0].clamp(min=0)
    clean = everything(e, c, indices, bias, 1e-3)
    indices[5, 1] = value
    found = everything(e, c, indices, bias, 1e-3)
    assert found["gathered"][5, 1].isnan()
    found["gathered"][5, 1] = clean["gathered"][5, 1]
    different = same_bits(clean, found)
    assert set(different) <= {"grad_e", "grad_c", "grad_bias", "kept"}
    assert all(found[name].isfinite().all() for name in different if name != "kept")


@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("filter_eps", [None, 1e-3])
def test_a_bound_of_the_workspace_is_kept_and_changes_no_bit(dtype: torch.dtype, filter_eps: float | None) -> None:
    inputs = operands(70, 900, 24, dtype)
    free = everything(*inputs, filter_eps)
    with pytest.raises(RuntimeError, match=r"'workspace_bytes': expected at least \d+, got 1") as raised:
        everything(*inputs, filter_eps, workspace_bytes=1)
    least = int(str(raised.value).split("at least ")[1].split(",")[0])
    for size in (least, 2 * least):
        assert not same_bits(free, everything(*inputs, filter_eps, workspace_bytes=size))


@pytest.mark.usefixtures("capability")
def test_dense_and_sparse_tiles_together() -> None:
    # Half of the vocabulary is as likely as can be and survives as a whole, the other half only by the indices.
    T, V, C = 150, 512, 32
    e, c, indices, _ = operands(T, V, C, torch.float32)
    indices = indices.clamp(min=0)
    bias = torch.zeros(V)
    bias[256:] = -30.0
    eps = 1e-5
    lse, _, gathered, *_, kept = cuda.forward(e, c, indices, bias, filter_eps=eps)
    grad_prob, grad_logits = torch.randn(T), torch.randn(T, 3)
    got = cuda.backward(
        e, c, indices, gathered, lse, kept, grad_prob, grad_logits, bias=bias, filter_eps=eps, need_bias=True
    )
    p = (e.double() @ c.double().T + bias - lse.double()[:, None]).exp()
    assert 0.3 < (p >= eps).double().mean() < 0.5
    dz = torch.where(p >= eps, p * grad_prob.double()[:, None], 0.0).scatter_add(1, indices, grad_logits.double())
    wanted = (dz @ c.double(), dz.T @ e.double(), dz.sum(0))
    for mine, exact in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize("topk", [1, 5, 33, 200])
def test_topk_of_equal_logits_takes_the_lowest_indices(topk: int) -> None:
    e = torch.ones(130, 16, dtype=torch.bfloat16)
    c = torch.ones(200, 16, dtype=torch.bfloat16)
    *_, values, indices, _ = cuda.forward(e, c, torch.zeros(130, 1, dtype=torch.int64), topk=topk)
    assert torch.equal(indices, torch.arange(topk).expand(130, topk))
    assert (values == 16).all()


def test_tiles_are_taken_once_each_and_group_by_group() -> None:
    for rows, columns, group in itertools.product((1, 3, 8), (1, 2, 5), (1, 2, 3, 100)):
        found = [simt.tile_in_order(i, rows, columns, group) for i in range(rows * columns)]
        assert sorted(found) == list(itertools.product(range(rows), range(columns)))
        assert [row // group for row, _ in found] == sorted(row // group for row, _ in found)


@pytest.mark.parametrize(
    ("rows", "length", "slots", "parts"),
    # 256 of 264 slots at once; fewer rows than slots; more rows than slots; nothing to split; one row.
    [(64, 125, 264, 4), (8, 128, 264, 32), (1000, 128, 264, 5), (5, 1, 264, 1), (1, 128, 264, 128)],
)
def test_splits_fill_the_machine(rows: int, length: int, slots: int, parts: int) -> None:
    assert simt.best_split(rows, length, slots) == parts
    waves, ideal = -(-rows * parts // slots), rows * length / slots
    assert waves * -(-length // parts) <= max(1.06 * ideal, 1)


@pytest.mark.parametrize("vocabulary", [1, 127, 128, 129, 16384, 32768, 128256, 256000, 2**31 - 1])
def test_vocabulary_blocks_are_whole_tiles_and_not_too_many(vocabulary: int) -> None:
    block = simt.vocab_block_of(vocabulary)
    assert block % 128 == 0
    assert -(-vocabulary // block) <= 128
