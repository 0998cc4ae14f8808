"""What the case table of ``paro_attention`` cannot say: its properties, and how it errs."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tokcore
from tokcore import BlockMask
from tokcore.permutation import permutation_indices
from tokcore.reference.block_sparse_attention import block_sparse_attention as exact_attention

FORMATS = tuple(itertools.product(("int8", "int4", "bf16"), ("int8", "int4", "fp8", "bf16")))


def heads(N: int, D: int = 64, H: int = 2, Hkv: int = 2, B: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, H, N, D), (B, Hkv, N, D), (B, Hkv, N, D))
    q, k, v = (torch.randn(*shape, generator=generator).bfloat16() for shape in shapes)
    return q, k, v


def random_mask(N: int, density: float, H: int = 2, block: tuple[int, int] = (64, 64), seed: int = 5) -> BlockMask:
    rows, columns = -(-N // block[0]), -(-N // block[1])
    kept = torch.rand(1, H, rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    kept[..., 0] = True
    return BlockMask.from_dense(kept, block, shape=(N, N))


def relative_error(x: Tensor, expected: Tensor) -> float:
    return float((x.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("code", range(6))
@pytest.mark.parametrize("text", [(0, 0), (3, 0), (0, 70), (2, 5)])
def test_order_and_inverse_are_the_identity(code: int, text: tuple[int, int]) -> None:
    grid = (3, 5, 7)
    N = math.prod(grid) + sum(text)
    q, k, v = heads(N)
    # Every token sees all of its block alone or all: with everything kept, the order makes no difference.
    full = BlockMask.full((N, N))
    out = tokcore.paro_attention(q, k, v, full, code, grid, text=text, qk="bf16", pv="bf16")
    exact = exact_attention(q, k, v, full).out
    assert relative_error(out, exact) < 4e-3
    # The operands stand in the order of the code.
    operands = tokcore.paro_prepare(q, k, v, code, grid, text=text, qk="bf16", pv="bf16")
    order = permutation_indices(code, grid, text)
    assert torch.equal(operands.q_codes[:, :, :N], q[:, :, order])
    assert torch.equal(operands.v_codes[:, :, :N], v[:, :, order])
    assert not operands.k_codes[:, :, N:].any()


@pytest.mark.parametrize(("qk", "pv"), [("int8", "int8"), ("bf16", "bf16")])
def test_the_mask_counts_positions(qk: str, pv: str) -> None:
    """Reordered inputs under code 0 with the same mask give the same, reordered."""
    grid = (4, 6, 11)
    N = math.prod(grid)
    q, k, v = heads(N)
    mask = random_mask(N, 0.4)
    for code in range(1, 6):
        order = permutation_indices(code, grid)
        out, lse = tokcore.paro_attention(q, k, v, mask, code, grid, qk=qk, pv=pv, smooth_k=False, return_lse=True)
        by_hand, lse_by_hand = tokcore.paro_attention(
            q[:, :, order], k[:, :, order], v[:, :, order], mask, 0, grid, qk=qk, pv=pv, smooth_k=False, return_lse=True
        )
        assert torch.equal(out[:, :, order], by_hand)
        assert torch.equal(lse[:, :, order], lse_by_hand)


def test_text_is_kept_whatever_the_mask_says() -> None:
    grid, text = (2, 8, 8), (3, 70)
    N = math.prod(grid) + sum(text)
    q, k, v = heads(N)
    rows = -(-N // 64)
    nothing = BlockMask.from_dense(torch.zeros(1, 1, rows, rows, dtype=torch.bool), shape=(N, N))
    holds_text = torch.tensor([True, False, True, True])  # positions 0-2 and 131-200
    kept = holds_text | holds_text.unsqueeze(1)
    exact = exact_attention(q, k, v, BlockMask.from_dense(kept[None, None], shape=(N, N))).out
    out = tokcore.paro_attention(q, k, v, nothing, 0, grid, text=text, qk="bf16", pv="bf16")
    assert relative_error(out, exact) < 4e-3


@pytest.mark.parametrize(("D", "N"), [(64, 1024), (128, 1000), (96, 520)])
def test_accuracy_on_scores_of_deviation_one(D: int, N: int) -> None:
    grid = (2, N // 8, 4)
    q, k, v = heads(N, D)
    mask = random_mask(N, 0.5)
    order = permutation_indices(4, grid)
    reordered = exact_attention(q[:, :, order], k[:, :, order], v[:, :, order], mask)
    exact, exact_lse = torch.empty_like(reordered.out), torch.empty_like(reordered.lse)
    exact[:, :, order], exact_lse[:, :, order] = reordered.out, reordered.lse
    out, lse = tokcore.paro_attention(q, k, v, mask, 4, grid, qk="bf16", pv="bf16", return_lse=True)
    assert relative_error(out, exact) <= 3e-3
    assert float((lse - exact_lse).abs().max()) <= 1e-4
    out = tokcore.paro_attention(q, k, v, mask, 4, grid)
    assert relative_error(out, exact) <= 0.02
    assert float(F.cosine_similarity(out.double().flatten(), exact.flatten(), 0)) >= 0.9995


@pytest.mark.parametrize("qk", ["int8", "int4"])
def test_smoothing_mends_outliers(qk: str) -> None:
    grid = (4, 8, 8)
    q, k, v = heads(256)
    k[..., 7] += 100.0
    full = BlockMask.full((256, 256))
    exact = exact_attention(q, k, v, full)
    errors = []
    for smooth_k in (False, True):
        out, lse = tokcore.paro_attention(q, k, v, full, 2, grid, qk=qk, smooth_k=smooth_k, return_lse=True)
        assert out.isfinite().all()
        assert lse.isfinite().all()
        errors.append(relative_error(out, exact.out))
        if smooth_k:
            assert float((lse - exact.lse).abs().max()) < 0.3
    assert errors[1] < errors[0] / 4


def test_extreme_scores_stay_exact_at_the_greatest() -> None:
    """One key far above all others takes all the weight, wherever it stands; also far below what came before."""
    N = 640
    q, k, v = heads(N, H=1, Hkv=1)
    for position in (0, 63, 300, 639):
        for size in (30.0, 3000.0):
            strong = k.clone()
            strong[:, :, position] = size * q[:, :, 5] / q[:, :, 5].float().norm()
            args = (q, strong, v, BlockMask.full((N, N)), 0, (1, 10, 64))
            out = tokcore.paro_attention(*args, smooth_k=False, scale=1.0)
            assert relative_error(out[:, :, 5], v[:, :, position].double()) < 0.02
    assert tokcore.paro_attention(q * 1e-30, k, v, BlockMask.full((N, N)), 0, (1, 10, 64)).isfinite().all()


@pytest.mark.parametrize("pv", ["int8", "bf16"])
@pytest.mark.parametrize("scale", [0.02, 0.125, 2.0])
def test_codes_are_attended_whether_a_score_counts_little_or_much(pv: str, scale: float) -> None:
    N = 700
    q, k, v = heads(N, seed=9)
    operands = tokcore.paro_prepare(q, k, v, 0, (1, 1, N), qk="int8", pv="bf16", smooth_k=False)
    assert operands.q_scale is not None
    assert operands.k_scale is not None
    exact_q = operands.q_codes[:, :, :N].double() * operands.q_scale[:, :, :N, None]
    exact_k = (operands.k_codes.double() * operands.k_scale.repeat_interleave(64, dim=2)[..., None])[:, :, :N]
    mask = random_mask(N, 0.5)
    exact = exact_attention(exact_q, exact_k, v.double(), mask, scale=scale)
    out, lse = tokcore.paro_attention(
        q, k, v, mask, 0, (1, 1, N), qk="int8", pv=pv, smooth_k=False, scale=scale, return_lse=True
    )
    assert relative_error(out, exact.out) < (0.02 if pv == "int8" else 6e-3)
    torch.testing.assert_close(lse.double(), exact.lse, atol=4e-3, rtol=1e-4)


def test_empty_rows_between_long_ones() -> None:
    N, blocks = 1472, 23
    q, k, v = heads(N, seed=10)
    kept = torch.ones(1, 2, blocks, blocks, dtype=torch.bool)
    kept[:, :, 1::2] = False
    kept[:, 1, 4:9] = False
    mask = BlockMask.from_dense(kept, shape=(N, N))
    for qk, pv in (("int8", "int8"), ("bf16", "bf16"), ("int8", "bf16")):
        out = tokcore.paro_attention(q, k, v, mask, 0, (1, 1, N), qk=qk, pv=pv)
        empty = ~kept[:, :, :, 0].repeat_interleave(64, dim=2)
        assert not out[empty].any()
        assert relative_error(out, exact_attention(q, k, v, mask).out) < 0.025


@pytest.mark.parametrize(("qk", "pv"), FORMATS)
def test_results_are_bitwise_repeatable(qk: str, pv: str) -> None:
    grid = (5, 6, 11)
    q, k, v = heads(math.prod(grid) + 3, B=2)
    mask = random_mask(333, 0.5)
    args: dict[str, Any] = {"text": (3, 0), "qk": qk, "pv": pv, "return_lse": True}
    first = tokcore.paro_attention(q, k, v, mask, [1, 5], grid, **args)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            again = tokcore.paro_attention(q, k, v, mask, [1, 5], grid, **args)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(threads)
    alone = tokcore.paro_attention(q[1:, :1], k[1:, :1], v[1:, :1], _of_head(mask, 0), 1, grid, **args)
    assert torch.equal(first[0][1:, :1], alone[0])


def _of_head(mask: BlockMask, head: int) -> BlockMask:
    return BlockMask(mask.bits[:, head : head + 1].contiguous(), mask.block, shape=mask.shape)


@pytest.mark.parametrize("group", [1, 2, 3, 8])
def test_groups_of_heads(group: int) -> None:
    grid = (3, 4, 9)
    q, k, v = heads(108, H=2 * group)
    mask = random_mask(108, 0.7, H=2 * group)
    repeated = (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
    shared = tokcore.paro_attention(q, k, v, mask, [2, 3], grid)
    assert torch.equal(shared, tokcore.paro_attention(*repeated, mask, [2] * group + [3] * group, grid))
    assert torch.equal(shared, tokcore.paro_attention(q, k, v, mask, [2] * group + [3] * group, grid))


def test_prepared_operands_serve_again() -> None:
    grid = (2, 5, 13)
    q, k, v = heads(130)
    operands = tokcore.paro_prepare(q, k, v, 3, grid)
    for density in (0.3, 1.0):
        mask = random_mask(130, density)
        expected = tokcore.paro_attention(q, k, v, mask, 3, grid, scale=0.2, return_lse=True)
        got = operands.attend(mask, scale=0.2, return_lse=True)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    short = tokcore.paro_prepare(q, k, v, 3, grid, need_lse=False)
    assert torch.equal(short.attend(mask), operands.attend(mask))
    with pytest.raises(ValueError, match=r"return_lse.*need_lse of paro_prepare"):
        short.attend(mask, return_lse=True)


def test_rotation_is_that_of_rotary_embeddings() -> None:
    grid = (2, 3, 7)
    q, k, v = (x.float() for x in heads(42, D=40))
    angles = torch.rand(42, 20, generator=torch.Generator().manual_seed(3)) * 6
    turned = torch.polar(torch.ones_like(angles), angles)
    by_hand = [torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turned).flatten(-2) for x in (q, k)]
    full = BlockMask.full((42, 42))
    expected = exact_attention(*by_hand, v, full).out
    options: dict[str, Any] = {"qk": "bf16", "pv": "bf16"}
    rope = (angles.cos(), angles.sin())
    out = tokcore.paro_attention(q, k, v, full, 1, grid, rope=rope, **options)
    assert relative_error(out, expected) < 5e-3
    wide = tuple(table.repeat_interleave(2, 1) for table in rope)
    assert torch.equal(out, tokcore.paro_attention(q, k, v, full, 1, grid, rope=wide, **options))  # type: ignore[arg-type]
    halves = [torch.cat((x[..., 0::2], x[..., 1::2]), -1) for x in (q, k)]
    half = tokcore.paro_attention(*halves, v, full, 1, grid, rope=rope, rope_pairs="half", **options)
    assert relative_error(half, expected) < 5e-3


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("qk", "pv"), FORMATS)
def test_what_is_not_finite_reaches_what_shares_its_scale(qk: str, pv: str, value: float) -> None:
    N, grid = 256, (4, 8, 8)
    q, k, v = heads(N, H=1, Hkv=1)
    kept = torch.eye(4, dtype=torch.bool)
    kept[2, 1] = True
    mask = BlockMask.from_dense(kept[None, None], shape=(N, N))

    def nan_of(**changed: Tensor) -> Tensor:
        options: dict[str, Any] = {"qk": qk, "pv": pv, "smooth_k": False}
        given = {"q": q, "k": k, "v": v, **changed}
        return tokcore.paro_attention(**given, block_mask=mask, permutation=0, grid=grid, **options).isnan()[0, 0]

    bad_q, bad_k, bad_v = q.clone(), k.clone(), v.clone()
    bad_q[0, 0, 70, 3] = bad_k[0, 0, 70, 3] = bad_v[0, 0, 70, 3] = value
    rows = torch.zeros(N, dtype=torch.bool)
    rows[70] = True
    assert torch.equal(nan_of(q=bad_q), rows.unsqueeze(1).expand(N, 64))
    rows[64:192] = True  # blocks 1 and 2 keep block 1
    got = nan_of(k=bad_k)
    if qk == "bf16" and value == math.inf:  # only scores of +inf are NaN weights
        assert not got[~rows].any()
        assert got[rows].any()
    else:
        assert torch.equal(got, rows.unsqueeze(1).expand(N, 64))
    got = nan_of(v=bad_v)
    if pv == "bf16":
        assert not got[:, torch.arange(64) != 3].any()
    else:
        assert torch.equal(got, (torch.arange(64) == 3).expand(N, 64))


def test_no_tokens_no_heads() -> None:
    q, k, v = (x[:0] for x in heads(8))
    out, lse = tokcore.paro_attention(q, k, v, BlockMask.full((8, 8)), 0, (2, 2, 2), return_lse=True)
    assert out.shape == (0, 2, 8, 64)
    assert lse.shape == (0, 2, 8)


FULL = BlockMask.full((24, 24))
ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"block_mask": BlockMask.full((24, 25))},
        ValueError,
        "'block_mask': expected shape (24, 24) (N, N), got (24, 25)",
    ),
    ({"block_mask": None}, TypeError, "'block_mask': expected a tokcore.BlockMask, got NoneType"),
    ({"permutation": 6}, ValueError, "'permutation': expected codes in [0, 5], got 6"),
    ({"permutation": -1}, ValueError, "'permutation': expected codes in [0, 5], got -1"),
    ({"permutation": [0, 7]}, ValueError, "'permutation': expected codes in [0, 5], got 7"),
    ({"permutation": [0, 1, 2]}, ValueError, "expected a code, or 4 (H of q) or 2 (Hkv of k) codes, got 3 codes"),
    (
        {"permutation": [0, 1, 2, 2]},
        ValueError,
        "expected the same code for the 2 heads of a key head, got [0, 1, 2, 2]",
    ),
    ({"permutation": [0.0, 1.0]}, TypeError, "'permutation': expected a code, or 4"),
    ({"grid": (2, 3, 5)}, ValueError, "'grid': expected F*H*W + text = 24 (N of q), got 30"),
    ({"text": (1, 0)}, ValueError, "'grid': expected F*H*W + text = 24 (N of q), got 25"),
    ({"grid": (2, 12)}, TypeError, "'grid': expected (F, H, W), three ints"),
    ({"grid": (2, 12, -1)}, ValueError, "'grid': expected (F, H, W) with sizes >= 1"),
    ({"text": (25, -1)}, ValueError, "'text': expected (before, after), two ints >= 0"),
    ({"qk": "fp8"}, ValueError, "'qk': expected 'int8' or 'int4' or 'bf16', got 'fp8'"),
    ({"pv": "fp4"}, ValueError, "'pv': expected 'int8' or 'int4' or 'fp8' or 'bf16', got 'fp4'"),
    ({"rope_pairs": "whole"}, ValueError, "'rope_pairs': expected 'interleaved' or 'half', got 'whole'"),
    ({"rope": torch.ones(24, 16)}, TypeError, "'rope': expected (cos, sin), two Tensors, or None, got Tensor"),
    ({"rope": (torch.ones(24, 15),) * 2}, ValueError, "'rope': expected shape [24 or 24, 32 or 16]"),
    ({"rope": (torch.ones(24, 16), torch.ones(24, 32))}, ValueError, "'rope[1]': expected shape [24, 16]"),
    ({"rope": (torch.ones(24, 16).double(),) * 2}, TypeError, "'rope': expected dtype float32, got float64"),
    ({"scale": math.nan}, ValueError, "'scale': expected a finite value > 0"),
    ({"scale": 0.0}, ValueError, "'scale': expected a finite value > 0"),
    ({"k": torch.zeros(1, 2, 23, 32)}, ValueError, "'k': expected 24 tokens (N of q), got 23"),
    ({"v": torch.zeros(1, 2, 24, 33)}, ValueError, "'v': expected shape [1, 2, 24, 32] (shape of k)"),
    ({"smooth_k": 1}, TypeError, "'smooth_k': expected a bool, got int"),
    ({"return_lse": 1}, TypeError, "'return_lse': expected a bool, got int"),
]


@pytest.mark.parametrize(("change", "error", "words"), ERRORS, ids=[words for _, _, words in ERRORS])
def test_errors(change: dict[str, Any], error: type[Exception], words: str) -> None:
    given: dict[str, Any] = {"q": torch.zeros(1, 4, 24, 32), "k": torch.zeros(1, 2, 24, 32)}
    given |= {"v": torch.zeros(1, 2, 24, 32), "block_mask": FULL, "permutation": 0, "grid": (2, 3, 4)}
    with pytest.raises(error, match=re.escape(words)) as raised:
        tokcore.paro_attention(**{**given, **change})
    assert type(raised.value) is error
    assert str(raised.value).startswith("tokcore.paro_attention: argument '")


@pytest.mark.parametrize("head_dim", [31, 257])
def test_head_sizes_out_of_range(head_dim: int) -> None:
    q = torch.zeros(1, 1, 4, head_dim)
    with pytest.raises(ValueError, match=rf"expected a last dimension in \[32, 256\], got {head_dim}"):
        tokcore.paro_attention(q, q, q, BlockMask.full((4, 4)), 0, (1, 2, 2))
