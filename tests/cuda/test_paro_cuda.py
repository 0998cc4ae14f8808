"""The CUDA kernels of PARO attention, executed on the CPU."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))

import paro_simt as cuda
import pytest
import torch
from simt_support import POLICIES, Policy
from torch import Tensor

import tokcore
from tokcore.testing import tables

TABLE = tables()["paro_attention"]
QUICK = [case.name for case in TABLE.cases if "quick" in case.tags]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMATS = tuple(itertools.product(("int8", "int4", "bf16"), ("int8", "int4", "fp8", "bf16")))
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


@pytest.mark.parametrize("name", QUICK[::3])
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
