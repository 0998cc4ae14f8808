"""What the case table of ``block_sparse_attention`` cannot say: meaning, determinism, layouts, NaN, sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import DTYPES, assert_bitwise, bits, threads
from torch import Tensor

from tokcore import BlockMask, block_sparse_attention, masks
from tokcore.block_mask import BLOCKS
from tokcore.reference.block_sparse_attention import block_sparse_attention as reference_attention

NAN, INF = float("nan"), float("inf")


def heads(
    M: int, N: int, D: int = 64, dtype: torch.dtype = torch.float32, B: int = 1, H: int = 2, Hkv: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, H, M, D), (B, Hkv, N, D), (B, Hkv, N, D))
    q, k, v = (torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


def random_mask(
    shape: tuple[int, int], block: tuple[int, int] = (64, 64), B: int = 1, H: int = 2, density: float = 0.5
) -> BlockMask:
    rows, columns = -(-shape[0] // block[0]), -(-shape[1] // block[1])
    dense = torch.rand(B, H, rows, columns, generator=torch.Generator().manual_seed(1)) < density
    return BlockMask.from_dense(dense, block, shape=shape)


def everything(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, **options: Any) -> dict[str, Tensor]:
    """Results and gradients by name."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out, lse = block_sparse_attention(leaves[0], leaves[1], leaves[2], mask, return_lse=True, **options)
    generator = torch.Generator().manual_seed(5)
    grad_out = torch.randn(out.shape, generator=generator).to(out.dtype)
    grad_lse = torch.randn(lse.shape, generator=generator)
    grads = torch.autograd.grad((out, lse), leaves, (grad_out, grad_lse))
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(("dq", "dk", "dv"), grads, strict=True))}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("causal", [False, True])
def test_a_mask_that_keeps_everything_is_dense_attention(
    dtype: torch.dtype, block: tuple[int, int], causal: bool
) -> None:
    q, k, v = heads(200, 200, dtype=dtype, H=4, Hkv=2)
    out = block_sparse_attention(q, k, v, BlockMask.full((200, 200), block), causal=causal)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=causal, enable_gqa=True)
    tolerance = 2e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_of_any_size_mean_the_same(block: tuple[int, int]) -> None:
    # A mask in units of 128 x 128 said in smaller blocks.
    q, k, v = heads(700, 900, dtype=torch.bfloat16)
    coarse = random_mask((700, 900), (128, 128))
    fine = coarse.to_dense().repeat_interleave(128 // block[0], -2).repeat_interleave(128 // block[1], -1)
    rows, columns = -(-700 // block[0]), -(-900 // block[1])
    mask = BlockMask.from_dense(fine[..., :rows, :columns], block, shape=(700, 900))
    assert_bitwise(everything(q, k, v, mask), everything(q, k, v, coarse))


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_rows(dtype: torch.dtype) -> None:
    q, k, v = heads(200, 300, dtype=dtype)
    dense = torch.ones(1, 2, 4, 5, dtype=torch.bool)
    dense[0, 0, 1] = False
    dense[0, 1, 3] = False
    found = everything(q, k, v, BlockMask.from_dense(dense, shape=(200, 300)))
    empty = torch.zeros(1, 2, 200, dtype=torch.bool)
    empty[0, 0, 64:128] = True
    empty[0, 1, 192:] = True
    assert torch.equal(found["lse"] == -INF, empty)
    assert torch.equal((found["out"] == 0).all(-1), empty)
    assert torch.equal((found["dq"] == 0).all(-1), empty)
    assert all(value[~value.isneginf()].isfinite().all() for value in found.values())


def test_queries_before_every_key() -> None:
    q, k, v = heads(100, 30)
    found = everything(q, k, v, BlockMask.full((100, 30)), causal=True)
    assert (found["lse"][..., :70] == -INF).all()
    assert (found["out"][..., :70, :] == 0).all()
    torch.testing.assert_close(found["out"][:, :, 70], v[:, :, 0].expand(1, 2, 64))
    assert found["lse"][..., 70:].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_single_key_gives_its_value_exactly(dtype: torch.dtype) -> None:
    q, k, v = heads(70, 129, dtype=dtype)
    dense = torch.tensor([[False, False, True]]).expand(2, 3)
    found = everything(q, k, v, BlockMask.from_dense(dense, shape=(70, 129)))
    assert torch.equal(found["out"], v[:, :, 128:].expand(1, 2, 70, 64))


@pytest.mark.parametrize("M", [0, 1, 70])
@pytest.mark.parametrize("N", [0, 1, 70])
@pytest.mark.parametrize(("B", "H"), [(0, 2), (1, 0), (2, 2)])
def test_empty_tensors(M: int, N: int, B: int, H: int) -> None:
    q, k, v = heads(M, N, B=B, H=H, Hkv=min(H, 1))
    found = everything(q, k, v, BlockMask.full((M, N)))
    assert found["out"].shape == q.shape
    if N == 0:
        assert not found["out"].any()
        assert (found["lse"] == -INF).all()
    assert all(found[name].shape == x.shape for name, x in (("dq", q), ("dk", k), ("dv", v)))
    if M == 0:
        assert not found["dk"].any()


def test_references_that_rise_again_and_again() -> None:
    # Later keys score far higher, tile after tile, and some rows rise while their neighbours do not.
    q, k, v = heads(130, 900, dtype=torch.float32)
    growth = torch.linspace(0.0, 60.0, 900).view(1, 1, 900, 1)
    k = k + growth * torch.nn.functional.normalize(q[:, :1, :1].mean(1, keepdim=True), dim=-1)
    mask = BlockMask.full((130, 900))
    for dtype, limit in ((torch.float32, 2e-6), (torch.bfloat16, 6e-3)):
        given = [x.to(dtype) for x in (q, k, v)]
        out, lse = block_sparse_attention(given[0], given[1], given[2], mask, return_lse=True)
        expected = reference_attention(given[0], given[1], given[2], mask)
        assert (out.double() - expected.out).norm() / expected.out.norm() < limit
        torch.testing.assert_close(lse.double(), expected.lse, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("scale", [1e-4, 1e2])
def test_extreme_scores_do_not_overflow(scale: float) -> None:
    q, k, v = heads(100, 300)
    mask = random_mask((100, 300))
    out, lse = block_sparse_attention(q, k, v, mask, scale=scale, return_lse=True)
    expected = reference_attention(q, k, v, mask, scale=scale)
    torch.testing.assert_close(out.double(), expected.out, rtol=1e-3, atol=1e-3 if scale > 1 else 1e-6)
    torch.testing.assert_close(lse.double(), expected.lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_accuracy_at_length(dtype: torch.dtype) -> None:
    q, k, v = heads(1000, 4608, 128, dtype, H=1)
    mask = random_mask((1000, 4608), H=1, density=0.3)
    out, lse = block_sparse_attention(q, k, v, mask, return_lse=True)
    expected = reference_attention(q, k, v, mask)
    assert (out.double() - expected.out).norm() / expected.out.norm() < 3e-3
    assert (lse.double() - expected.lse).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"causal": True}], ids=str)
@pytest.mark.parametrize("shape", [(1, 700), (130, 130), (577, 801)])
def test_thread_count_changes_no_bit(dtype: torch.dtype, options: dict[str, Any], shape: tuple[int, int]) -> None:
    q, k, v = heads(*shape, 72, dtype, B=2, H=4, Hkv=2)
    mask = random_mask(shape, B=2, H=4)
    found = []
    for count in (1, 2, 3, 2):
        with threads(count):
            found.append(everything(q, k, v, mask, **options))
    for other in found[1:]:
        assert_bitwise(other, found[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_head_is_what_it_is_alone(dtype: torch.dtype) -> None:
    q, k, v = heads(150, 400, 64, dtype, B=2, H=4, Hkv=2)
    mask = random_mask((150, 400), B=2, H=4)
    full = block_sparse_attention(q, k, v, mask)
    for b, h in ((0, 0), (1, 3)):
        one = BlockMask.from_dense(mask.to_dense()[b, h], shape=mask.shape)
        pair = slice(h // 2, h // 2 + 1)
        alone = block_sparse_attention(q[b : b + 1, h : h + 1], k[b : b + 1, pair], v[b : b + 1, pair], one)
        assert torch.equal(bits(full[b, h]), bits(alone[0, 0]))


def strided_batch(x: Tensor) -> Tensor:
    """[B, H, L, D] as a view of [B, L, H, D]."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def fused(x: Tensor) -> Tensor:
    """A third of a fused projection."""
    wide = torch.full((*x.shape[:-1], 3, x.size(-1)), NAN, dtype=x.dtype)
    wide[..., 1, :] = x
    return wide[..., 1, :]


def misaligned(x: Tensor) -> Tensor:
    """Rows that begin at odd addresses."""
    wide = torch.full((*x.shape[:-1], x.size(-1) + 3), NAN, dtype=x.dtype)
    wide[..., 1:-2] = x
    return wide[..., 1:-2]


def spaced(x: Tensor) -> Tensor:
    """Every second element of the storage: a last dimension that is not dense."""
    wide = torch.full((*x.shape, 2), NAN, dtype=x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [strided_batch, fused, misaligned, spaced])
def test_strides_change_no_bit(dtype: torch.dtype, layout: Callable[[Tensor], Tensor]) -> None:
    q, k, v = heads(100, 200, 64, dtype, B=2, H=4, Hkv=2)
    mask = random_mask((100, 200), B=2, H=4)
    expected = everything(q, k, v, mask)
    views = [layout(x) for x in (q, k, v)]
    assert not any(x.is_contiguous() for x in views)
    leaves = [x.detach().requires_grad_() for x in views]
    out, lse = block_sparse_attention(leaves[0], leaves[1], leaves[2], mask, return_lse=True)
    generator = torch.Generator().manual_seed(5)
    grad_out, grad_lse = (
        torch.randn(out.shape, generator=generator).to(dtype),
        torch.randn(lse.shape, generator=generator),
    )
    grads = torch.autograd.grad((out, lse), leaves, (layout(grad_out), grad_lse))
    got = {"out": out.detach(), "lse": lse.detach(), **dict(zip(("dq", "dk", "dv"), grads, strict=True))}
    assert_bitwise(got, expected)


def test_expanded_heads_and_gradient() -> None:
    q, k, v = heads(100, 200, H=1)
    wide = (q.expand(1, 6, 100, 64), k.expand(1, 3, 200, 64), v.expand(1, 3, 200, 64))
    mask = random_mask((100, 200), H=1)
    out = block_sparse_attention(wide[0], wide[1], wide[2], mask)
    assert torch.equal(out, block_sparse_attention(q, k, v, mask).expand_as(out))
    leaf = q.detach().requires_grad_()
    one = block_sparse_attention(leaf, k, v, mask)
    from_expanded = torch.autograd.grad(one, leaf, torch.ones(()).expand_as(one), retain_graph=True)[0]
    assert torch.equal(from_expanded, torch.autograd.grad(one, leaf, torch.ones_like(one))[0])


def test_frozen_inputs_get_no_gradient() -> None:
    q, k, v = heads(100, 200)
    mask = random_mask((100, 200))
    full = everything(q, k, v, mask)
    for wanted in ((True, False, False), (False, True, False), (False, False, True), (False, True, True)):
        leaves = [x.detach().requires_grad_(need) for x, need in zip((q, k, v), wanted, strict=True)]
        out, lse = block_sparse_attention(leaves[0], leaves[1], leaves[2], mask, return_lse=True)
        generator = torch.Generator().manual_seed(5)
        grads = (torch.randn(out.shape, generator=generator), torch.randn(lse.shape, generator=generator))
        torch.autograd.backward((out, lse), grads)
        for leaf, need, name in zip(leaves, wanted, ("dq", "dk", "dv"), strict=True):
            assert (leaf.grad is not None) == need
            if leaf.grad is not None:
                assert torch.equal(bits(leaf.grad), bits(full[name]))


@pytest.mark.parametrize("only", ["out", "lse"])
def test_gradient_of_one_output_alone(only: str) -> None:
    q, k, v = heads(70, 100, H=1)
    mask = random_mask((70, 100), H=1, density=0.9)
    mine = [x.detach().requires_grad_() for x in (q, k, v)]
    theirs = [x.detach().double().requires_grad_() for x in (q, k, v)]
    out, lse = block_sparse_attention(mine[0], mine[1], mine[2], mask, return_lse=True)
    expected = reference_attention(theirs[0], theirs[1], theirs[2], mask)
    results = (out, expected.out) if only == "out" else (lse, expected.lse)
    got, want = (
        torch.autograd.grad(result.sum(), leaves, allow_unused=True, materialize_grads=True)
        for result, leaves in zip(results, (mine, theirs), strict=True)
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-5)


def test_second_derivatives_are_refused() -> None:
    q, k, v = (x.requires_grad_() for x in heads(10, 10))
    out = block_sparse_attention(q, k, v, BlockMask.full((10, 10)))
    (grad,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"argument 'create_graph': expected False"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_bad_query_spoils_no_other(dtype: torch.dtype, value: float) -> None:
    q, k, v = heads(100, 200, 64, dtype)
    mask = random_mask((100, 200), density=0.8)
    clean, clean_lse = block_sparse_attention(q, k, v, mask, return_lse=True)
    q[0, 1, 70, 3] = value
    out, lse = block_sparse_attention(q, k, v, mask, return_lse=True)
    expected = reference_attention(q, k, v, mask)
    bad = torch.zeros(1, 2, 100, dtype=torch.bool)
    bad[0, 1, 70] = True
    # An infinite score ends a pass of sums early, which may round the last bit of its neighbours otherwise.
    tolerance = torch.finfo(dtype).eps
    torch.testing.assert_close(out[~bad], clean[~bad], rtol=tolerance, atol=tolerance)
    assert torch.equal(lse[~bad], clean_lse[~bad])
    assert torch.equal(out.isnan(), expected.out.isnan())
    assert torch.equal(torch.nan_to_num(lse[bad].double()), torch.nan_to_num(expected.lse[bad]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_key_reaches_who_sees_it(dtype: torch.dtype) -> None:
    q, k, v = heads(300, 300, 64, dtype)
    mask = random_mask((300, 300), density=0.5)
    clean = block_sparse_attention(q, k, v, mask, causal=True)
    k[0, 0, 150] = NAN
    out, lse = block_sparse_attention(q, k, v, mask, causal=True, return_lse=True)
    sees = mask.to_elements()[:, :, :, 150] & (torch.arange(300) >= 150)
    assert sees.any()
    assert torch.equal(lse.isnan(), sees)
    assert torch.equal(out.isnan().any(-1), sees)
    assert torch.equal(bits(out[~sees]), bits(clean[~sees]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_value_reaches_rows_that_keep_its_block(dtype: torch.dtype) -> None:
    q, k, v = heads(300, 300, 64, dtype)
    mask = random_mask((300, 300), density=0.5)
    clean = block_sparse_attention(q, k, v, mask)
    v[0, 0, 150, 7] = NAN
    out = block_sparse_attention(q, k, v, mask)
    sees = mask.to_elements()[:, :, :, 150]
    expected = torch.zeros_like(out, dtype=torch.bool)
    expected[..., 7] = sees
    assert torch.equal(out.isnan(), expected)
    assert torch.equal(bits(out[~expected]), bits(clean[~expected]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_gradient_stays_with_its_row(dtype: torch.dtype) -> None:
    q, k, v = (x.requires_grad_() for x in heads(100, 200, 64, dtype))
    mask = random_mask((100, 200), density=0.8)
    out = block_sparse_attention(q, k, v, mask)
    grad = torch.ones_like(out)
    (clean,) = torch.autograd.grad(out, q, grad, retain_graph=True)
    grad[0, 1, 70, 0] = NAN
    (spoiled,) = torch.autograd.grad(out, q, grad)
    bad = torch.zeros(1, 2, 100, dtype=torch.bool)
    bad[0, 1, 70] = True
    assert torch.equal(bits(spoiled[~bad]), bits(clean[~bad]))
    assert spoiled[bad].isnan().all()


def test_what_a_mask_leaves_out_is_not_read() -> None:
    q, k, v = heads(128, 256)
    dense = torch.tensor([[True, False, False, True], [False, True, False, False]])
    mask = BlockMask.from_dense(dense, shape=(128, 256))
    clean = everything(q, k, v, mask)
    k[:, :, 128:192] = NAN
    v[:, :, 128:192] = INF
    spoiled = everything(q, k, v, mask)
    assert not spoiled["dk"][:, :, 128:192].any()
    assert_bitwise(spoiled, clean)


def test_storage_past_two_to_the_31_elements() -> None:
    # Strides reach far although few elements are touched: the storage is mapped, never written.
    q, k, v = heads(3, 5, 64, torch.bfloat16)
    storage = torch.empty(2**29 * 4 + 64, dtype=torch.bfloat16)
    far = storage.as_strided((1, 1, 5, 64), (0, 0, 2**29, 1))
    far.copy_(k)
    mask = BlockMask.full((3, 5))
    assert torch.equal(block_sparse_attention(q, far, v, mask), block_sparse_attention(q, k, v, mask))


def test_more_packed_heads_than_fit_at_once() -> None:
    # Keys and values are packed for as many heads at a time as stay within a bound: here in several groups.
    q, k, v = heads(64, 20000, 64, torch.bfloat16, B=2, H=3, Hkv=3)
    mask = random_mask((64, 20000), B=2, H=3, density=0.05)
    out = block_sparse_attention(q, k, v, mask)
    expected = reference_attention(q, k, v, mask).out
    assert (out.double() - expected).norm() / expected.norm() < 3e-3


@pytest.mark.parametrize("length", [63, 64, 65, 1000])
def test_a_sliding_window_equals_its_elements(length: int) -> None:
    q, k, v = heads(length, length)
    mask = masks.sliding_window((length, length), 100, sinks=4)
    out = block_sparse_attention(q, k, v, mask, causal=True)
    visible = mask.to_elements() & torch.ones(length, length, dtype=torch.bool).tril()
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), visible, enable_gqa=True)
    torch.testing.assert_close(out.double(), expected, rtol=2e-6, atol=2e-6)


def test_lse_joins_disjoint_masks() -> None:
    # Two halves of the keys, merged by their lse, are the whole.
    q, k, v = heads(100, 512)
    dense = torch.rand(1, 2, 2, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    half = BlockMask.from_dense(dense, shape=(100, 512))
    parts = [block_sparse_attention(q, k, v, mask, return_lse=True) for mask in (half, ~half)]
    lse = torch.logaddexp(parts[0][1], parts[1][1])
    merged = sum(out * (part - lse).exp().unsqueeze(-1) for out, part in parts)
    whole, whole_lse = block_sparse_attention(q, k, v, BlockMask.full((100, 512)), return_lse=True)
    torch.testing.assert_close(lse, whole_lse, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(merged, whole, rtol=1e-5, atol=1e-6)
    assert math.isfinite(float(lse.sum()))
