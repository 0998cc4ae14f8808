"""The CUDA kernels of PARO attention, executed on the CPU."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))

import paro_simt as cuda
import pytest
import test_paro_attention as properties
import torch
from simt_support import POLICIES, Policy
from support import assert_error_rule
from torch import Tensor

import tokcore
from tokcore import BlockMask
from tokcore.testing import tables

TABLE = tables()["paro_attention"]
QUICK = [case.name for case in TABLE.cases if "quick" in case.tags]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMATS = tuple(itertools.product(("int8", "int4", "bf16"), ("int8", "int4", "fp8", "bf16")))
ENGINES = (("int8", "int8"), ("int4", "fp8"), ("bf16", "int4"), ("bf16", "bf16"))  # each pair of kinds of products
OPERANDS = ("q_codes", "q_scale", "k_codes", "k_scale", "v_codes", "v_scale", "k_mean")


def heads(
    N: int, D: int = 64, H: int = 2, Hkv: int = 1, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, H, N, D), (1, Hkv, N, D), (1, Hkv, N, D))
    q, k, v = (torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def assert_same_operands(given: dict[str, Any]) -> tokcore.ParoOperands:
    """The kernels make the bits of the CPU; what is summed in another order is near. Returns what they made."""
    expected = tokcore.paro_prepare(**given)
    with cuda.in_place_of_the_cpu():
        found = tokcore.paro_prepare(**given)
    for name in OPERANDS:
        assert same_bits(getattr(found, name), getattr(expected, name)), name
    scale = expected.mean_score.abs().max() if expected.mean_score.numel() else torch.tensor(0.0)
    torch.testing.assert_close(found.mean_score, expected.mean_score, rtol=0, atol=2e-6 * float(scale) * 8)
    return found


@pytest.mark.parametrize("name", QUICK[2::4])
def test_operands_are_those_of_the_cpu(name: str) -> None:
    inputs = TABLE.make_inputs(TABLE.case(name), "cpu", 0)
    assert_same_operands({key: value for key, value in inputs.items() if key not in ("block_mask", "scale")})


@pytest.mark.parametrize("code", range(6))
@pytest.mark.parametrize(("text", "D"), [((0, 0), 32), ((3, 0), 33), ((0, 70), 72), ((2, 5), 256)])
def test_orders_with_text(code: int, text: tuple[int, int], D: int) -> None:
    grid = (3, 5, 7)
    q, k, v = heads(math.prod(grid) + sum(text), D)
    formats = FORMATS[(code + 2 * D) % len(FORMATS)]
    given = {"q": q, "k": k, "v": v, "permutation": code, "grid": grid, "text": text}
    assert_same_operands({**given, "qk": formats[0], "pv": formats[1]})


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e-35, 1e36])
@pytest.mark.parametrize(("qk", "pv"), [("int8", "int8"), ("int4", "fp8")])
def test_numbers_at_the_edges_of_scales(qk: str, pv: str, value: float) -> None:
    q, k, v = heads(130, dtype=torch.float32)
    q[0, 0, 70, 3] = k[0, 0, 5, 3] = v[0, 0, 90, 7] = value
    v[..., 9] = value  # a channel of nothing else
    q[0, 1, 3] = 0.0
    given = {"q": q, "k": k, "v": v, "permutation": 2, "grid": (2, 5, 13), "qk": qk, "pv": pv}
    found = assert_same_operands({**given, "smooth_k": False})
    assert not found.v_codes[..., 9, :].any() or value == 1e36


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_order_of_threads_gives_the_same_operands(dtype: torch.dtype) -> None:
    q, k, v = heads(97, 40, dtype=dtype)
    angles = 6.0 * torch.rand(90, 20, generator=torch.Generator().manual_seed(2))
    rope = (angles.cos(), angles.sin())
    given: dict[str, Any] = {"q": q, "k": k, "v": v, "permutation": 4, "grid": (3, 5, 6), "text": (7, 0), "rope": rope}
    with cuda.in_place_of_the_cpu():
        expected = tokcore.paro_prepare(**given)
        for policy in (*POLICIES[1:], Policy(workers=2)):
            policy.use()
            found = tokcore.paro_prepare(**given)
            assert all(same_bits(getattr(found, x), getattr(expected, x)) for x in (*OPERANDS, "mean_score")), policy


@pytest.mark.parametrize("placement", ["end", "start"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [32, 33, 130])
def test_nothing_outside_the_arrays_is_touched(
    dtype: torch.dtype, D: int, placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda.SETUP, "placement", placement)
    wide = heads(67, D + 3, dtype=dtype)
    for given in (heads(67, D, dtype=dtype), tuple(x[..., 3:] for x in wide)):
        for qk, pv in (("int8", "int8"), ("int4", "int4"), ("bf16", "bf16")):
            q, k, v = given
            options = {"permutation": 5, "grid": (4, 4, 4), "text": (1, 2), "qk": qk, "pv": pv}
            assert_same_operands({"q": q, "k": k, "v": v, **options})


# ---- attention ----


@pytest.fixture
def on_cuda() -> Iterator[None]:
    with cuda.in_place_of_the_cpu():
        yield


def a_call(D: int, qk: str, pv: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """With text at both ends, a rotation, groups of heads and a mask with holes."""
    grid, text = (3, 5, 9), (3, 5)
    N = math.prod(grid) + sum(text)
    q, k, v = heads(N, D, dtype=dtype)
    kept = torch.rand(1, 2, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    call: dict[str, Any] = {"q": q, "k": k, "v": v, "block_mask": BlockMask.from_dense(kept, shape=(N, N))}
    call |= {"permutation": [4], "grid": grid, "text": text, "qk": qk, "pv": pv}
    if D % 2 == 0:
        angles = 6.0 * torch.rand(N, D // 2, generator=torch.Generator().manual_seed(2))
        call["rope"] = (angles.cos(), angles.sin())
    return call


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("name", QUICK[::4])
def test_case(name: str) -> None:
    assert_error_rule(TABLE, TABLE.make_inputs(TABLE.case(name), "cpu", 0))


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize(("qk", "pv"), ENGINES)
@pytest.mark.parametrize("D", [64, 128, 256])
def test_every_order_of_threads_gives_the_same_bits(qk: str, pv: str, D: int) -> None:
    operands = tokcore.paro_prepare(**{x: y for x, y in a_call(D, qk, pv).items() if x != "block_mask"})
    mask = a_call(D, qk, pv)["block_mask"]
    expected = operands.attend(mask, return_lse=True)
    for policy in (*POLICIES[1 + D // 128 :: 3], Policy(workers=2)):
        policy.use()
        found = operands.attend(mask, return_lse=True)
        assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True)), str(policy)


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("placement", ["end", "start"])
@pytest.mark.parametrize(("qk", "pv"), ENGINES)
@pytest.mark.parametrize("D", [32, 33, 130, 255])
def test_attention_touches_nothing_outside_the_arrays(
    D: int, qk: str, pv: str, placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda.SETUP, "placement", placement)
    assert_error_rule(TABLE, a_call(D, qk, pv, DTYPES[D % 3]))


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize(("block", "text"), [((64, 64), (0, 0)), ((128, 64), (1, 0)), ((64, 128), (0, 70))])
def test_a_walk_over_many_words_of_a_mask(block: tuple[int, int], text: tuple[int, int]) -> None:
    # Words without any bit, single bits, and rows of which the two halves of a tile keep different blocks.
    grid = (5, 8, 70)
    N = math.prod(grid) + sum(text)
    q, k, v = heads(N, 32, H=1)
    rows, columns = -(-N // block[0]), -(-N // block[1])
    dense = torch.zeros(1, 1, rows, columns, dtype=torch.bool)
    for row in range(0, rows, 3):
        dense[0, 0, row, [(7 * row) % columns, columns - 1 - row]] = row != 3
    mask = BlockMask.from_dense(dense, block, shape=(N, N))
    call = {"q": q, "k": k, "v": v, "block_mask": mask, "permutation": [5], "grid": grid, "text": text}
    assert_error_rule(TABLE, {**call, "qk": "int8", "pv": "int8"})


@pytest.mark.usefixtures("on_cuda")
class TestProperties:
    """What tests/ops/test_paro_attention.py says of the op."""

    @pytest.mark.parametrize(("qk", "pv"), ENGINES)
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_what_is_not_finite(self, qk: str, pv: str, value: float) -> None:
        properties.test_what_is_not_finite_reaches_what_shares_its_scale(qk, pv, value)

    @pytest.mark.parametrize("engine", [("int8", "int8"), ("bf16", "bf16")])
    def test_the_mask_counts_positions(self, engine: tuple[str, str]) -> None:
        properties.test_the_mask_counts_positions(*engine)

    def test_text_is_kept(self) -> None:
        properties.test_text_is_kept_whatever_the_mask_says()

    def test_order_and_inverse(self) -> None:
        properties.test_order_and_inverse_are_the_identity(3, (2, 5))

    def test_extreme_scores(self) -> None:
        properties.test_extreme_scores_stay_exact_at_the_greatest()

    def test_smoothing_mends_outliers(self) -> None:
        properties.test_smoothing_mends_outliers("int4")

    def test_groups_of_heads(self) -> None:
        properties.test_groups_of_heads(3)

    def test_accuracy(self) -> None:
        properties.test_accuracy_on_scores_of_deviation_one(96, 520)

    def test_no_tokens(self) -> None:
        properties.test_no_tokens_no_heads()
