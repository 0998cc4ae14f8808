"""A warp-specialised GEMM with TMA, mbarriers and wgmma, executed on the CPU, against fp64."""

from __future__ import annotations

import pytest
import torch
from simt_support import POLICIES, Policy, guarded, guarded_empty, simt

KINDS = ["bf16_k_k", "bf16_k_mn", "bf16_mn_k", "bf16_mn_mn", "bf16_registers", "bf16_cluster", "s8", "e4m3"]


def operand(kind: str, shape: tuple[int, int], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "s8":
        return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
    values = torch.randn(shape, generator=generator)
    return values.to(torch.float8_e4m3fn) if kind == "e4m3" else values.bfloat16()


def check(kind: str, m: int, n: int, k: int, blocks: int, placement: str = "end") -> None:
    a, b = operand(kind, (m, k), 1), operand(kind, (n, k), 2)
    exact = a.double() @ b.double().T
    majors = kind.split("_")[1:]
    a = a.T.contiguous() if majors[:1] == ["mn"] else a
    b = b.T.contiguous() if majors[1:] == ["mn"] else b
    a, b = guarded(a, "a", placement), guarded(b, "b", placement)
    c = guarded_empty((m, n), torch.int32 if kind == "s8" else torch.float32, "c", placement)
    simt.hopper_gemm(kind, a.data_ptr(), b.data_ptr(), c.data_ptr(), m, n, k, blocks)
    if kind == "s8":
        assert torch.equal(c.double(), exact)
    else:
        a64, b64 = operand(kind, (m, k), 1).double().abs(), operand(kind, (n, k), 2).double().abs()
        assert ((c - exact).abs() <= 2.0**-20 * (a64 @ b64.T)).all()


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_right(kind: str, policy: Policy) -> None:
    policy.use()
    # Edges in every direction; five tiles for two blocks, so that the ring and the staging are used again.
    check(kind, 208, 144, 400, blocks=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("placement", ["end", "start"])
def test_a_single_small_tile(kind: str, placement: str) -> None:
    check(kind, 16, 16, 16, blocks=2, placement=placement)


def test_blocks_on_several_host_threads() -> None:
    Policy(workers=2).use()
    check("bf16_k_k", 400, 200, 128, blocks=8)
